"""Stateless random numbers: every draw is a function of (seed, stream, indices), whatever was drawn before.

Philox is a counter-based generator, so a resumed run draws what an uninterrupted one does, and two processes draw what
one does.
"""

from __future__ import annotations

import numpy as np

TRAINING, CACHE, GRID, VALIDATION, SHUFFLE, CALIBRATION, EVALUATION, FEW_STEPS, DECODER, DECODER_NOISE, GUIDANCE = (
    range(11)
)
"""Independent streams of one seed: training samples, the teacher's start noise, the grid of sample images, the
validation batch, the order of prompts, calibration inputs, the choice of evaluated prompts, the
start noise of few-step training, the tiny decoder's batches, the noise on its latents, guidance scales."""


def generator(seed: int, stream: int, a: int = 0, b: int = 0) -> np.random.Generator:
    """The generator of (seed, stream, a, b); a and b are e.g. a training step and a sample's index in it."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, a, b]))
