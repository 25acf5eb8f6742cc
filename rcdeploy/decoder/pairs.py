"""Training pairs without pictures: a latent of the cache, perhaps noised, and the VAE's decode of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..diffusion_model import LatentDiffusionModel
from ..latent_cache import LatentCache
from ..random_streams import DECODER, DECODER_NOISE, generator
from ..recipe_stages import Decoder

MAX_VALIDATION_PAIRS = 64
VALIDATION_SHARE = 8
"""one row in so many, at most, is kept for validation"""


@dataclass
class PairMaker:
    """Makes (latents, images). Sample i of step s is a function of (seed, s, i) alone.

    Of each row there are two pairs: its latent as cached, and one with noise whose level is uniform in [0, noise], and
    (with `crop`) a place in the latent. So a target that was decoded once can be used again: `remembered` holds them,
    as far as memory allows. Each is decoded by itself, because kernels round by the shape of a batch.
    """

    teacher: LatentDiffusionModel
    cache: LatentCache
    section: Decoder
    remembered: dict[tuple[int, bool], Tensor] = field(default_factory=dict)

    @property
    def validation_rows(self) -> range:
        """The last rows of the cache, which training leaves out."""
        count = min(MAX_VALIDATION_PAIRS, len(self.cache) // VALIDATION_SHARE)
        return range(len(self.cache) - count, len(self.cache))

    def make(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: scaled latents [n, c, h, w], images [n, 3, H, W] in [-1, 1]."""
        rows = len(self.cache) - len(self.validation_rows)
        draws = [generator(self.section.seed, DECODER, step, i) for i in range(self.section.batch_size)]
        return self.pairs([(int(rng.integers(rows)), bool(rng.integers(2))) for rng in draws])

    def pairs(self, keys: Sequence[tuple[int, bool]]) -> tuple[Tensor, Tensor]:
        """keys: (row, whether it is noised)."""
        latents = [self._latents(row, noised) for row, noised in keys]
        images = [self._image(key, z) for key, z in zip(keys, latents, strict=True)]
        return torch.stack(latents), torch.stack(images).float()

    def _latents(self, row: int, noised: bool) -> Tensor:
        """[c, h, w]."""
        latents = self.cache.latents([row])[0]
        rng = generator(self.section.seed, DECODER_NOISE, row, int(noised))
        if noised:
            level = np.float32(rng.uniform(0, self.section.noise))
            latents = latents + torch.from_numpy(level * rng.standard_normal(latents.shape, np.float32))
        if self.section.crop:
            top, left = (int(rng.integers(max(1, side - self.section.crop + 1))) for side in latents.shape[1:])
            latents = latents[:, top : top + self.section.crop, left : left + self.section.crop]
        return latents.to(self.teacher.device)

    def _image(self, key: tuple[int, bool], latents: Tensor) -> Tensor:
        """[3, H, W] in [-1, 1], rounded to half precision, remembered or not."""
        image = self.remembered.get(key)
        if image is None:
            image = (self.teacher.decode(latents[None])[0] * 2 - 1).half().cpu()
            bytes_each = image.numel() * image.element_size()
            if (len(self.remembered) + 1) * bytes_each <= self.section.target_cache_gb * 1e9:
                self.remembered[key] = image
        return image.to(self.teacher.device)
