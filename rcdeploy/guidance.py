"""Guidance that is folded into a student: one scale, or a range of them, of which the student takes one as an input.

Meng et al. 2023, section 3.1. rcdeploy_runtime.guidance embeds the scale; diffusers' pipelines do so for UNets with
`time_cond_proj_dim`.
"""

from __future__ import annotations

import numpy as np

from rcdeploy_runtime.noise_schedule import Array

from .random_streams import GUIDANCE, generator

GuidanceScale = float | tuple[float, float]
"""one scale, or the lowest and the highest"""
GuidanceScales = float | Array
"""one scale for all samples, or [n]"""


def draw_scales(scale: GuidanceScale | None, seed: int, step: int, samples: range) -> GuidanceScales | None:
    """The guidance scales of a training step's samples; those of a range are evenly distributed."""
    if not isinstance(scale, tuple):
        return scale
    low, high = scale
    drawn = [low + (high - low) * generator(seed, GUIDANCE, step, i).random() for i in samples]
    return np.asarray(drawn, np.float32)


def spread_scales(scale: GuidanceScale | None, n: int) -> GuidanceScales | None:
    """n scales at even distances over a range, for validation."""
    return np.linspace(*scale, n, dtype=np.float32) if isinstance(scale, tuple) else scale
