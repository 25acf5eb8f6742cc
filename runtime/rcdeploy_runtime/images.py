"""Images between pillow, numpy and latents: what `image` and `mask` may be, and how they are resized and pasted."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from .errors import RcdeployError
from .limits import MAX_INPUT_IMAGE_SIDE
from .noise_schedule import Array

ImageLike: TypeAlias = "Image.Image | np.ndarray[Any, np.dtype[Any]]"
ALLOWED = "a PIL image, or a numpy array [height, width, 3] or [height, width] of uint8, or of floats from 0 to 1"


def as_image(name: str, value: object) -> Image.Image:
    """A PIL image of what the caller gave as `name` ("image" or "mask").

    Raises RcdeployError that says what is allowed when it is none, and when an array has another shape or type.
    """
    if isinstance(value, np.ndarray):
        image = _from_array(name, value)
    elif isinstance(value, Image.Image):
        image = value
        try:
            image.load()
        except Exception as error:  # a file that pillow reads only now
            raise RcdeployError(f"{name} cannot be read: {error}", fix="Is the file damaged?") from None
    else:
        raise RcdeployError(
            f"{name} is a {type(value).__name__}; it must be {ALLOWED}",
            fix=f"Open a file first: PIL.Image.open({value!r})." if isinstance(value, str) else None,
        )
    if not 1 <= min(image.size) <= max(image.size) <= MAX_INPUT_IMAGE_SIDE:
        raise RcdeployError(
            f"{name} has {image.width} x {image.height} pixels; each side must be 1 to {MAX_INPUT_IMAGE_SIDE:,}"
        )
    return image


def _from_array(name: str, array: Array) -> Image.Image:
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3) or not pixels.size:
        raise RcdeployError(f"{name} is an array of shape {list(array.shape)}; it must be {ALLOWED}")
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise RcdeployError(
                f"{name} is an array of floats from {pixels.min():g} to {pixels.max():g}; 0 to 1 are allowed",
                fix="Divide by 255, or give uint8.",
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise RcdeployError(f"{name} is an array of {pixels.dtype}; it must be {ALLOWED}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def to_image(pixels: Array) -> Image.Image:
    """[height, width, 3] in [0, 1], clipped -> a PIL image."""
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def to_network(image: Image.Image, height: int, width: int) -> Array:
    """An image -> [1, 3, height, width] float32 in [-1, 1], as a VAE takes it."""
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)[None]


def latent_mask(mask: Image.Image, height: int, width: int) -> Array:
    """[1, 1, height, width] of latents: 1 where the image is generated anew; a latent that touches the white is."""
    small = np.asarray(mask.convert("L").resize((width, height), Image.Resampling.BOX), np.float32)
    return (small > 0).astype(np.float32)[None, None]


def paste(image: Image.Image, generated: Image.Image, mask: Image.Image) -> Image.Image:
    """The generated image where the mask is white, the original elsewhere."""
    original = image.convert("RGB").resize(generated.size, Image.Resampling.LANCZOS)
    return Image.composite(generated, original, mask.convert("L").resize(generated.size))
