"""The noise schedule: how much of x_0 is left in x_t, read from diffusers' scheduler_config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import RcdeployError

Array = np.ndarray[Any, np.dtype[Any]]
SPACINGS = ("leading", "trailing", "linspace")


def noise_generator(seed: int) -> np.random.Generator:
    """The generator of all noise of the image with this seed, x_T first."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64))


@dataclass(frozen=True)
class NoiseSchedule:
    """alphas_cumprod [T]: the share of x_0's variance in x_t (float64 of float32 values, as diffusers has them)."""

    alphas_cumprod: Array
    prediction_type: str
    config: dict[str, Any]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NoiseSchedule:
        """Raises RcdeployError for a schedule that no sampler here can follow."""
        T = int(config.get("num_train_timesteps", 1000))
        first, last = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
        kind = config.get("beta_schedule", "linear")
        if config.get("trained_betas") is not None:
            betas = np.asarray(config["trained_betas"], np.float32)
        elif kind == "linear":
            betas = np.linspace(first, last, T, dtype=np.float32)
        elif kind == "scaled_linear":
            betas = np.linspace(first**0.5, last**0.5, T, dtype=np.float32) ** 2
        elif kind == "squaredcos_cap_v2":
            bars = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
            betas = np.asarray([min(1 - b / a, 0.999) for a, b in zip(bars, bars[1:], strict=False)], np.float32)
        else:
            raise RcdeployError(f"beta_schedule {kind!r} is none of linear, scaled_linear, squaredcos_cap_v2")
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise RcdeployError(f"prediction_type {prediction!r} is none of epsilon, v_prediction, sample")
        if config.get("thresholding"):
            raise RcdeployError("dynamic thresholding is for models of pixels; this runtime draws from latents")
        if config.get("timestep_spacing", "leading") not in SPACINGS:
            raise RcdeployError(f"timestep_spacing {config['timestep_spacing']!r} is none of {', '.join(SPACINGS)}")
        alphas = np.cumprod(1 - betas, dtype=np.float32)
        if config.get("rescale_betas_zero_snr"):
            alphas = _to_zero_snr(alphas)
        return cls(alphas.astype(np.float64), prediction, config)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def split(self, output: Array, x: Array, alpha: float, sigma: float) -> tuple[Array, Array]:
        """The UNet's output for x = alpha x_0 + sigma noise -> (x_0, noise). The one place that asks what it predicts.

        alpha and sigma may be on any scale that has alpha^2 + sigma^2 = 1.
        """
        if self.prediction_type == "epsilon":
            return (x - sigma * output) / alpha, output
        if self.prediction_type == "sample":
            return output, (x - alpha * output) / sigma
        return alpha * x - sigma * output, alpha * output + sigma * x


def _to_zero_snr(alphas: Array) -> Array:
    """Shifts and stretches sqrt(alphas_cumprod) so that the last is 0 (Lin et al. 2023, algorithm 1)."""
    roots = np.sqrt(alphas)
    first, last = roots[0], roots[-1]
    bars: Array = ((roots - last) * (first / (first - last))) ** 2
    # through betas and back, as diffusers does: its last digit comes from there
    return np.cumprod(np.concatenate([bars[:1], bars[1:] / bars[:-1]]), dtype=np.float32)
