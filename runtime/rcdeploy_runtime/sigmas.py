"""Sigma, noise over signal: of every timestep, and as Karras et al. 2022 space it."""

from __future__ import annotations

import numpy as np

from .noise_schedule import Array, NoiseSchedule

ZERO_SNR_ALPHA = 2.0**-24
"""stands for alphas_cumprod = 0 at the end of a zero-SNR schedule, so that sigma is finite (as in diffusers)"""
KARRAS_RHO = 7.0
NO = (False, None)
OTHER_SIGMAS = {"use_exponential_sigmas": NO, "use_beta_sigmas": NO}
SIGMA_RANGE = {"sigma_min": (None,), "sigma_max": (None,)}
"""options of diffusers' classes, with the values that are followed here (Sampler.follows)"""


def train_sigmas(schedule: NoiseSchedule) -> Array:
    """sigma [T] of every timestep: noise over signal."""
    alphas_cumprod = schedule.alphas_cumprod.copy()
    if schedule.config.rescale_betas_zero_snr:
        alphas_cumprod[-1] = ZERO_SNR_ALPHA
    sigmas: Array = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    return sigmas


def karras_sigmas(largest: float, smallest: float, n: int) -> Array:
    """n sigmas from the largest to the smallest (Karras et al. 2022, equation 5)."""
    sigmas: Array = np.linspace(largest ** (1 / KARRAS_RHO), smallest ** (1 / KARRAS_RHO), n) ** KARRAS_RHO
    return sigmas


def timesteps_of(sigmas: Array, of_timestep: Array) -> Array:
    """Timesteps with fractions that have these sigmas; of_timestep [T] ascends."""
    return np.interp(np.log(sigmas), np.log(of_timestep), np.arange(len(of_timestep)))
