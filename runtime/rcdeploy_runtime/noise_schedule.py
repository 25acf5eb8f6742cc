"""The noise schedule: the share of x_0 in x_t, read from diffusers' scheduler_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import typed
from .errors import RcdeployError
from .limits import MAX_TRAIN_TIMESTEPS

Array = np.ndarray[Any, np.dtype[Any]]
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS = ("zero", "sigma_min")
MAX_SCALE = 1_000.0
"""of clip_sample_range and timestep_scaling"""
CONFIG_FILE = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class ScheduleConfig:
    """The keys of diffusers' scheduler_config.json that matter here, with diffusers' defaults.

    timestep_spacing, set_alpha_to_one: None takes the default of the sampler's class. skip_prk_steps: true where a
    configuration does not name it, as Stable Diffusion's do; diffusers then takes false.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    use_karras_sigmas: bool | None = False
    final_sigmas_type: str = "zero"
    euler_at_final: bool = False
    skip_prk_steps: bool = True

    def check(self, where: str) -> None:
        """Raises RcdeployError with everything that no sampler here can follow."""
        allowed: list[tuple[str, object, Sequence[object]]] = [
            ("beta_schedule", self.beta_schedule, BETA_SCHEDULES),
            ("prediction_type", self.prediction_type, PREDICTION_TYPES),
            ("timestep_spacing", self.timestep_spacing, (*SPACINGS, None)),
            ("final_sigmas_type", self.final_sigmas_type, FINAL_SIGMAS),
        ]
        bounds = [
            ("num_train_timesteps", self.num_train_timesteps, 1, MAX_TRAIN_TIMESTEPS),
            ("beta_start", self.beta_start, 0, 1),
            ("beta_end", self.beta_end, 0, 1),
            ("steps_offset", self.steps_offset, 0, self.num_train_timesteps),
            ("original_inference_steps", self.original_inference_steps, 1, MAX_TRAIN_TIMESTEPS),
            ("clip_sample_range", self.clip_sample_range, 0, MAX_SCALE),
            ("timestep_scaling", self.timestep_scaling, 0, MAX_SCALE),
        ]
        errors = [
            f"{key}: {value!r} is none of {', '.join(map(str, of))}" for key, value, of in allowed if value not in of
        ]
        errors += [
            f"{key}: {value} does not lie between {low} and {high:,}"
            for key, value, low, high in bounds
            if not low <= value <= high
        ]
        if self.trained_betas is not None and not 1 <= len(self.trained_betas) <= MAX_TRAIN_TIMESTEPS:
            errors.append(f"trained_betas: 1 to {MAX_TRAIN_TIMESTEPS:,} numbers are allowed")
        if self.thresholding:
            errors.append("thresholding: dynamic thresholding is for models of pixels; this runtime works on latents")
        if errors:
            raise RcdeployError(f"{where} cannot be followed:", errors=errors)


@dataclass(frozen=True)
class NoiseSchedule:
    """What the samplers know of a model's noise.

    Attributes:
        alphas_cumprod: [T], the share of x_0's variance in x_t (float64 of float32 values, as diffusers has them).
        config: the keys that samplers follow.
        options: every key of the configuration. A sampler refuses those of its class that it does not follow.
    """

    alphas_cumprod: Array
    config: ScheduleConfig
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | ScheduleConfig, where: str = CONFIG_FILE) -> NoiseSchedule:
        """Args:
            config: the object in scheduler_config.json.
            where: its file, for messages.

        Raises:
            RcdeployError: no sampler here can follow the schedule.
        """
        options: Mapping[str, Any] = {}
        if not isinstance(config, ScheduleConfig):
            options = dict(config)
            config = typed.from_json(ScheduleConfig, config, where)
        config.check(where)
        with np.errstate(all="ignore"):  # what is not finite is refused below
            alphas_cumprod = np.cumprod(1 - _betas(config), dtype=np.float32)
            if config.rescale_betas_zero_snr:
                alphas_cumprod = _to_zero_snr(alphas_cumprod)
        bounded = alphas_cumprod[:-1] if config.rescale_betas_zero_snr else alphas_cumprod
        if not ((bounded > 0) & (bounded < 1)).all() or not 0 <= alphas_cumprod[-1] < 1:
            raise RcdeployError(f"{where}: the betas leave alphas_cumprod outside 0 to 1")
        return cls(alphas_cumprod.astype(np.float64), config, options)

    def without_zero_snr(self) -> NoiseSchedule:
        """The schedule of classes of diffusers that do not know rescale_betas_zero_snr."""
        if not self.config.rescale_betas_zero_snr:
            return self
        plain = NoiseSchedule.from_config(replace(self.config, rescale_betas_zero_snr=False))
        return replace(plain, options=self.options)

    @property
    def prediction_type(self) -> str:
        return self.config.prediction_type

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def split(self, output: Array, x: Array, alpha: float, sigma: float) -> tuple[Array, Array]:
        """The UNet's output for x = alpha x_0 + sigma noise -> (x_0, noise). The one place that knows what it predicts.

        alpha and sigma may be on any scale that has alpha^2 + sigma^2 = 1.
        """
        if self.prediction_type == "epsilon":
            return (x - sigma * output) / alpha, output
        if self.prediction_type == "sample":
            return output, (x - alpha * output) / sigma
        return alpha * x - sigma * output, alpha * output + sigma * x


def _betas(config: ScheduleConfig) -> Array:
    """[T] float32."""
    T = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, np.float32)
    if config.beta_schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, T, dtype=np.float32)
    if config.beta_schedule == "scaled_linear":
        betas: Array = np.linspace(config.beta_start**0.5, config.beta_end**0.5, T, dtype=np.float32) ** 2
        return betas
    bars = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
    return np.asarray([min(1 - b / a, 0.999) for a, b in zip(bars, bars[1:], strict=False)], np.float32)


def _to_zero_snr(alphas: Array) -> Array:
    """Shifts and stretches sqrt(alphas_cumprod) so that the last is 0 (Lin et al. 2023, algorithm 1)."""
    roots = np.sqrt(alphas)
    first, last = roots[0], roots[-1]
    bars: Array = ((roots - last) * (first / (first - last))) ** 2
    # through betas and back, as diffusers does: its last digit comes from there
    return np.cumprod(np.concatenate([bars[:1], bars[1:] / bars[:-1]]), dtype=np.float32)


def spaced_timesteps(spacing: str, n: int, num_train_timesteps: int, steps_offset: int) -> Array:
    """n timesteps [n] int64, descending, by diffusers' timestep_spacing: leading, trailing or linspace."""
    if spacing == "leading":
        timesteps = np.round(np.arange(n) * (num_train_timesteps // n))[::-1].astype(np.int64) + steps_offset
    elif spacing == "trailing":
        # [:n]: for some n (61, 103, ...) rounding makes the range one longer
        timesteps = np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / n)[:n]).astype(np.int64) - 1
    else:
        timesteps = np.linspace(0, num_train_timesteps - 1, n).round()[::-1].astype(np.int64)
    return timesteps
