"""Inpainting: outside the mask, the image's own latents at every step, with the noise that belongs there."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from .images import latent_mask
from .noise_schedule import Array
from .sampler_base import Sampler


def restoring(
    mask: Image.Image | None, x_0: Array | None, sampler: Sampler, noise: Array
) -> Callable[[Array, int], Array]:
    """A function of (latents after step i, i) that puts the image's own latents back outside the mask.

    x_0: of the image, [1, c, h, w]. noise: [n, c, h, w], added to it. Without an image latents stay as they are.
    """
    if mask is None or x_0 is None:
        return lambda latents, i: latents
    weights = latent_mask(mask, *noise.shape[2:])
    last = len(sampler.timesteps) - 1

    def restore(latents: Array, i: int) -> Array:
        original = x_0 if i == last else sampler.add_noise(x_0, noise, i + 1)
        restored: Array = (1 - weights) * original + weights * latents
        return restored

    return restore
