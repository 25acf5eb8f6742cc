"""Euler's and Heun's samplers, which step in sigma. Part of samplers.py.

Where a package's configuration says use_karras_sigmas, the sigmas are those of Karras et al. 2022; not for the
ancestral one, whose class has no such option.
"""

from __future__ import annotations

import numpy as np

from .noise import Noise
from .noise_schedule import Array, NoiseSchedule
from .sampler_base import Sampler
from .sigmas import OTHER_SIGMAS, SIGMA_RANGE, karras_sigmas, timesteps_of, train_sigmas


class Euler(Sampler):
    """Karras et al. 2022, algorithm 2 without churn, on x = x_0 + sigma noise."""

    default_spacing = "linspace"
    divides_by_signal = False
    follows = {
        **OTHER_SIGMAS,
        **SIGMA_RANGE,
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
    }
    clips = False

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise)
        sigmas = self._place(num_inference_steps, train_sigmas(schedule))
        self.sigmas = [float(s) for s in sigmas.astype(np.float32)]
        largest = max(self.sigmas)
        self.init_noise_sigma = largest if self.spacing != "leading" else (largest**2 + 1) ** 0.5
        self._skip(skip)

    def _place(self, n: int, of_timestep: Array) -> Array:
        """Sets the timesteps; returns their sigmas, and where the last step ends."""
        self.timesteps = self._timesteps(n)
        sigmas = np.interp(self.timesteps, np.arange(len(of_timestep)), of_timestep)
        if self.schedule.config.use_karras_sigmas:
            sigmas = karras_sigmas(sigmas[0], sigmas[-1], n)
            self.timesteps = timesteps_of(sigmas, of_timestep)
        return np.append(sigmas, of_timestep[0] if self.schedule.config.final_sigmas_type == "sigma_min" else 0)

    def _skip(self, steps: int) -> None:
        self.timesteps = self.timesteps[steps:]
        self.sigmas = self.sigmas[steps:]

    def _timesteps(self, n: int) -> Array:
        if self.spacing == "linspace":  # fractions stay
            return np.linspace(0, len(self.schedule) - 1, n, dtype=np.float32)[::-1]
        return super()._timesteps(n)

    def _lie_in_schedule(self, timesteps: Array) -> bool:
        """A timestep beyond the last has the last's sigma (np.interp), as in diffusers."""
        return bool(timesteps[-1] >= 0 and (np.diff(timesteps) < 0).all())

    def scale_model_input(self, x: Array, i: int) -> Array:
        scaled: Array = x / (self.sigmas[i] ** 2 + 1) ** 0.5
        return scaled

    def _derivative(self, noise_pred: Array, i: int, x: Array) -> Array:
        """dx/dsigma."""
        sigma = self.sigmas[i]
        norm = (sigma**2 + 1) ** 0.5
        x_0, _ = self.schedule.split(noise_pred, x / norm, 1 / norm, sigma / norm)
        self.pred_original_sample = self._clipped(x_0) if self.clips else x_0
        return (x - self.pred_original_sample) / sigma

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        return x + self._derivative(noise_pred, i, x) * (self.sigmas[i + 1] - self.sigmas[i])

    def add_noise(self, x_0: Array, noise: Array, i: int) -> Array:
        return x_0 + self.sigmas[i] * noise


class EulerAncestral(Euler):
    """Euler down to a smaller sigma, then fresh noise up to the next (k-diffusion's, eta 1)."""

    follows = {}

    def _place(self, n: int, of_timestep: Array) -> Array:
        self.timesteps = self._timesteps(n)
        return np.append(np.interp(self.timesteps, np.arange(len(of_timestep)), of_timestep), 0)

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        sigma = self.sigmas[i]
        next_sigma = self.sigmas[i + 1]
        sigma_up = (next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2) ** 0.5
        sigma_down = (next_sigma**2 - sigma_up**2) ** 0.5
        # noise is drawn at the last step too, as diffusers does; it counts for nothing there
        x_next: Array = x + self._derivative(noise_pred, i, x) * (sigma_down - sigma) + self.noise() * sigma_up
        return x_next


class Heun(Euler):
    """Karras et al. 2022, algorithm 1: each Euler step but the last is taken again with the mean of both slopes.

    2 steps - 1 visits: at even ones Euler's step, at odd ones the correction, at the sigma where that step arrived.
    Like diffusers' class it knows no zero SNR, and always ends at sigma 0.
    """

    follows = {**OTHER_SIGMAS}
    clips = True

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule.without_zero_snr(), num_inference_steps, noise, skip)
        self._first: tuple[Array, Array] | None = None

    def _place(self, n: int, of_timestep: Array) -> Array:
        sigmas = super()._place(n, of_timestep)[:-1]
        self.timesteps = np.repeat(self.timesteps, 2)[1:]
        return np.append(np.repeat(sigmas, 2)[1:], 0)

    def _skip(self, steps: int) -> None:
        super()._skip(2 * steps)

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        slope = self._derivative(noise_pred, i, x)
        if self._first is None:
            self._first = x, slope
            return x + slope * (self.sigmas[i + 1] - self.sigmas[i])
        x, first_slope = self._first
        self._first = None
        x_next: Array = x + (first_slope + slope) / 2 * (self.sigmas[i] - self.sigmas[i - 1])
        return x_next
