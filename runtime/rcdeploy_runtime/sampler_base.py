"""The interface of a sampler, and what all of them share: timesteps, and the checks that a schedule has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from .errors import RcdeployError
from .noise import Noise
from .noise_schedule import Array, NoiseSchedule, spaced_timesteps


class Sampler(ABC):
    """What all samplers share: the timesteps and the noise schedule.

    Attributes:
        timesteps: [visits], descending.
        init_noise_sigma: the standard deviation that the first x has.
        pred_original_sample: the last step's prediction of x_0, for previews.
        eta: how much of the noise is fresh at each step, 0 to 1; of samplers with takes_eta.
    """

    default_spacing = "leading"
    """timestep_spacing where the configuration names none; the same default as diffusers' class has"""
    default_set_alpha_to_one = True
    divides_by_signal = True
    """it cannot step from alphas_cumprod = 0 with a predicted epsilon"""
    takes_eta = False
    follows: ClassVar[Mapping[str, Sequence[object]]] = {}
    """options of diffusers' class -> the only values that are followed here, the default first"""

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        """skip: steps left out at the start (img2img). Raises RcdeployError for steps that the schedule lacks."""
        self.schedule = schedule
        self.num_inference_steps = num_inference_steps
        self.noise = noise
        self.spacing = schedule.config.timestep_spacing or self.default_spacing
        self.steps_offset = schedule.config.steps_offset
        self.init_noise_sigma = 1.0
        self.eta = 0.0
        self._check_options()
        self._check_steps()
        self.timesteps = self._timesteps(num_inference_steps)[skip:]
        self.pred_original_sample: Array | None = None
        self._check_signal()

    def _check_options(self) -> None:
        for key, values in self.follows.items():
            value = self.schedule.options.get(key, values[0])
            if value not in values:
                raise RcdeployError(
                    f"scheduler_config.json has {key} = {value!r:.60}, which this sampler does not follow",
                    fix=f'Use another sampler, such as "ddim", or a package with {key} = {values[0]!r}.',
                )

    def _timesteps(self, n: int) -> Array:
        return spaced_timesteps(self.spacing, n, len(self.schedule), self.steps_offset)

    def _lie_in_schedule(self, timesteps: Array) -> bool:
        return bool(timesteps[-1] >= 0 and timesteps[0] < len(self.schedule) and (np.diff(timesteps) < 0).all())

    def _check_steps(self) -> None:
        n = self.num_inference_steps
        T = len(self.schedule)
        if 1 <= n <= T and self._lie_in_schedule(self._timesteps(n)):
            return
        most = next((k for k in range(T, 0, -1) if self._lie_in_schedule(self._timesteps(k))), 0)
        raise RcdeployError(
            f"num_inference_steps is {n}: this sampler takes {f'1 to {most}' if most else 'no number of'} steps on the "
            f"package's noise schedule ({T} timesteps, {self.spacing} spacing, offset {self.steps_offset})",
            fix="20 to 50 steps are usual." if most else "Use another sampler.",
        )

    def _check_signal(self) -> None:
        if self.schedule.prediction_type != "epsilon" or not self.divides_by_signal:
            return
        if self.schedule.alphas_cumprod[int(self.timesteps[0])] == 0:
            raise RcdeployError(
                "this model predicts epsilon, and its noise schedule has no signal at the first step (zero SNR), "
                "from which this sampler cannot step",
                fix='Use sampler="euler" or "dpm++".',
            )

    def _alpha_bar(self, t: int) -> float:
        """alphas_cumprod at t; below 0 its value at the end of the trajectory."""
        if t >= 0:
            return float(self.schedule.alphas_cumprod[t])
        to_one = self.schedule.config.set_alpha_to_one
        if to_one is None:
            to_one = self.default_set_alpha_to_one
        return 1.0 if to_one else float(self.schedule.alphas_cumprod[0])

    def _split(self, noise_pred: Array, x: Array, alpha_bar: float) -> tuple[Array, Array]:
        """(x_0, noise), x_0 clipped where the schedule says so (for pixels; SD's latents are not)."""
        x_0, noise = self.schedule.split(noise_pred, x, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        x_0 = self._clipped(x_0)
        self.pred_original_sample = x_0
        return x_0, noise

    def _clipped(self, x_0: Array) -> Array:
        if not self.schedule.config.clip_sample:
            return x_0
        limit = self.schedule.config.clip_sample_range
        return x_0.clip(-limit, limit)

    def scale_model_input(self, x: Array, i: int) -> Array:
        """x at visit i as the UNet takes it."""
        return x

    @abstractmethod
    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        """The UNet's output at visit i (epsilon, v or x_0, as the schedule says) and x there -> x at visit i + 1."""

    def add_noise(self, x_0: Array, noise: Array, i: int) -> Array:
        """x at visit i for an image whose latents are x_0."""
        return noisy_latents(self._alpha_bar(int(self.timesteps[i])), x_0, noise)


def noisy_latents(alpha_bar: float, x_0: Array, noise: Array) -> Array:
    """x_t where alphas_cumprod is alpha_bar."""
    x: Array = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise
    return x
