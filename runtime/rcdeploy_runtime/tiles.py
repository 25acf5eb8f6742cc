"""Latents decoded in overlapping tiles, blended where they overlap: memory of one tile instead of the image's.

A decoder's group norms and attention see one tile alone, so an image in tiles is not quite the image as a whole: tiles
differ a little in tone, and blending turns their seams into slopes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .noise_schedule import Array

OVERLAP = 8
"""latent pixels that neighbours share at least; 8 are what a convolution of the widest stage sees, and some more"""
MIN_TILE = 2 * OVERLAP
"""latent pixels along a side"""


def decode_in_tiles(decode: Callable[[Array], Array], latents: Array, tile: int, scale: int) -> Array:
    """[c, h, w] -> [3, h * scale, w * scale].

    Args:
        decode: latents [1, c, th, tw] -> pixels [1, 3, th * scale, tw * scale], called for one tile after another.
        latents: of one image.
        tile: latent pixels along a side of a tile, at least MIN_TILE; every tile has the same size.
        scale: pixels per latent pixel, along a side.
    """
    _, height, width = latents.shape
    tile_height, tile_width = min(tile, height), min(tile, width)
    image = np.zeros((3, height * scale, width * scale), np.float32)
    weights = np.zeros(image.shape[1:], np.float32)
    window = np.outer(ramps(tile_height * scale, scale), ramps(tile_width * scale, scale))
    for top in starts(height, tile_height):
        for left in starts(width, tile_width):
            pixels = decode(latents[None, :, top : top + tile_height, left : left + tile_width])[0]
            rows = slice(top * scale, (top + tile_height) * scale)
            columns = slice(left * scale, (left + tile_width) * scale)
            image[:, rows, columns] += pixels * window
            weights[rows, columns] += window
    result: Array = image / weights
    return result


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side of `length` that they cover, as few as overlap by OVERLAP, evenly spread."""
    if tile >= length:
        return [0]
    count = 1 + -(-(length - tile) // (tile - OVERLAP))
    return [i * (length - tile) // (count - 1) for i in range(count)]


def ramps(length: int, scale: int) -> Array:
    """Weights along a side of a tile: they rise over the overlap at its start, and fall over that at its end."""
    rise = np.arange(1, length + 1, dtype=np.float32) / (OVERLAP * scale)
    return np.minimum(1, np.minimum(rise, rise[::-1]))
