"""Images as bytes: what clients upload, what they get, and what they fetch later by a url."""

from __future__ import annotations

import io
import secrets
import time
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .api_errors import ApiError

UPLOADS = ("PNG", "JPEG", "WEBP")
MAX_STORED_BYTES = 256 * 2**20


def encode_image(image: Image.Image, output_format: str, quality: int = 100, parameters: str = "") -> bytes:
    """output_format: png, jpeg or webp. quality: of jpeg and webp, 0 to 100. parameters: a png's text of that name."""
    buffer = io.BytesIO()
    settings: dict[str, Any] = {"quality": quality}
    if output_format == "png":
        settings = {"pnginfo": PngInfo()}
        if parameters:
            settings["pnginfo"].add_itxt("parameters", parameters)
    image.save(buffer, output_format, **settings)
    return buffer.getvalue()


def decode_image(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """An uploaded image. Raises ApiError when it is none, damaged, or has too many pixels (which are not decoded)."""
    try:
        image = Image.open(io.BytesIO(data), formats=UPLOADS)
        if image.width * image.height > max_pixels:
            raise ApiError(
                400,
                f"{param} has {image.width} x {image.height} pixels; at most {max_pixels:,} are allowed",
                code="image_too_large",
                param=param,
            )
        image.load()
    except ApiError:
        raise
    except Exception:  # pillow's plugins raise more than OSError
        raise ApiError(400, f"{param} is no whole png, jpeg or webp", code="invalid_image", param=param) from None
    return image


def transparent_mask(image: Image.Image) -> Image.Image | None:
    """White where `image` is fully transparent, as OpenAI's masks mean it, and None where nothing is."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return Image.fromarray(np.where(alpha == 0, 255, 0).astype(np.uint8)) if (alpha == 0).any() else None


class ImageStore:
    """Images in memory under names that cannot be guessed, for `seconds`; the oldest go when there are too many."""

    def __init__(self, seconds: float, max_bytes: int = MAX_STORED_BYTES) -> None:
        self._seconds, self._max_bytes = seconds, max_bytes
        self._images: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes, output_format: str) -> str:
        """The name, with the format as its ending."""
        name = f"{secrets.token_urlsafe(32)}.{output_format}"
        self._images[name] = (time.monotonic() + self._seconds, data)
        self._bytes += len(data)
        self._drop()
        return name

    def get(self, name: str) -> bytes | None:
        self._drop()
        return self._images[name][1] if name in self._images else None

    def _drop(self) -> None:
        while self._images:
            expires, data = next(iter(self._images.values()))
            if expires > time.monotonic() and self._bytes <= self._max_bytes:
                return
            self._images.popitem(last=False)
            self._bytes -= len(data)
