"""Picture files, for those who draw from a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .errors import RcdeployError


def open_picture(path: Path) -> Image.Image:
    """Raises RcdeployError when the file is missing or no picture."""
    try:
        return Image.open(path)
    except (OSError, ValueError) as error:
        raise RcdeployError(f"{path} cannot be opened as a picture: {error}") from None


def save_pictures(images: Sequence[Image.Image], path: Path) -> list[Path]:
    """One goes to `path`, several to path-0, path-1, ... Raises RcdeployError when pillow cannot write there."""
    files = [path] if len(images) == 1 else [path.with_stem(f"{path.stem}-{k}") for k in range(len(images))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, image in zip(files, images, strict=True):
            image.save(file)
    except (OSError, ValueError) as error:  # ValueError: an ending that names no format
        raise RcdeployError(f"{path} cannot be written: {error}", fix="For example: -o out.png") from None
    return files
