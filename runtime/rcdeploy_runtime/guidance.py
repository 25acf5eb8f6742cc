"""Guidance as an input of the UNet, for models that need one call a step at any scale (Meng et al. 2023, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .noise_schedule import Array
from .sampling_defaults import EMBEDDING_WIDTH

TIMESTEP_COND = "timestep_cond"
"""the UNet's input, by diffusers' name"""


def guidance_embedding(scales: Sequence[float] | Array, width: int = EMBEDDING_WIDTH) -> Array:
    """Guidance scales w [n] -> [n, width], fp32: sines, then cosines, of 1000 (w - 1) at width / 2 frequencies."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10_000) / (half - 1)))
    angles = (1000 * (np.asarray(scales, np.float32) - 1))[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
