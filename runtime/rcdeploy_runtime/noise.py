"""The noise of a seed: numpy's Philox, or the numbers of torch's CPU generator, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .noise_schedule import Array

Noise = Callable[[], Array]
GENERATORS = ("philox", "torch")
BLOCK = 16
"""numbers that torch.randn makes at once, of as many uniform ones"""


class TorchGenerator:
    """Draws what torch.randn draws with torch.Generator("cpu").manual_seed(seed), to the last bits of a float32.

    MT19937 and Box-Muller as in ATen's DistributionTemplates.h (`normal_fill`) and DistributionsHelper.h. The last bits
    of torch's own numbers depend on the vector instructions that the CPU has.

    Args:
        seed: as manual_seed takes it, negative ones too. Torch's generator reads the lowest 32 bits alone.
    """

    def __init__(self, seed: int) -> None:
        self._engine = np.random.RandomState(seed % 2**32)
        self._spare: float | None = None

    def standard_normal(self, shape: tuple[int, ...], dtype: type[np.float32] = np.float32) -> Array:
        """An array like torch.randn(shape): float32, the only dtype."""
        count = math.prod(shape)
        if count < BLOCK:
            return np.asarray([self._one() for _ in range(count)], dtype).reshape(shape)
        blocks = count // BLOCK
        uniform = self._uniform(count)
        normal = np.empty(count, dtype)
        normal[: blocks * BLOCK] = _box_muller(uniform[: blocks * BLOCK])
        if count % BLOCK:  # the last block is drawn anew, and overlaps the one before
            normal[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return normal.reshape(shape)

    def _bits(self, count: int) -> Array:
        return self._engine.randint(0, 2**32, count, dtype=np.uint32)

    def _uniform(self, count: int) -> Array:
        """[count] float32 in [0, 1), of 24 bits each."""
        return (self._bits(count) & (2**24 - 1)).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        """Of fewer than a block torch makes pairs, in double precision, and keeps the second for the next call."""
        if self._spare is not None:
            normal, self._spare = self._spare, None
            return normal
        high_1, low_1, high_2, low_2 = self._bits(4).tolist()
        angle = 2 * math.pi * _fraction(high_1, low_1)
        radius = math.sqrt(-2 * math.log1p(-_fraction(high_2, low_2)))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)


def _fraction(high: int, low: int) -> float:
    """53 of 64 bits as a number in [0, 1)."""
    return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform: Array) -> Array:
    """[16 n] float32 in [0, 1) -> as many normal ones: in each block 8 radii meet 8 angles."""
    first, second = np.split(uniform.reshape(-1, BLOCK), 2, axis=1)
    radius = np.sqrt(np.float32(-2) * np.log(1 - first))
    angle = np.float32(2 * math.pi) * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()


def noise_generator(seed: int) -> np.random.Generator:
    """Philox: the generator of all noise of the image with this seed, x_T first."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64))


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...], generator: str = "philox") -> Noise:
    """A function that draws noise [n, *shape], each image's from the generator of its seed.

    generator: one of GENERATORS. With "torch" it is what diffusers draws for a list of generators, one a seed.
    """
    generators = [TorchGenerator(seed) if generator == "torch" else noise_generator(seed) for seed in seeds]
    return lambda: np.stack([g.standard_normal(shape, np.float32) for g in generators])
