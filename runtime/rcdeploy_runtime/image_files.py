"""Image files, for those who generate from a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .errors import RcdeployError


def load_image(path: Path) -> Image.Image:
    """Raises RcdeployError when the file is missing, is no image, or is damaged."""
    if not path.is_file():
        raise RcdeployError(
            f"{path} cannot be opened as an image: {'not a file' if path.exists() else 'it is missing'}"
        )
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # pillow's plugins raise more than OSError: SyntaxError, DecompressionBombError ...
        raise RcdeployError(f"{path} cannot be opened as an image: {error}") from None
    return image


def check_image_path(path: Path) -> None:
    """Raises RcdeployError when images cannot be written to `path`; to be asked before they are generated."""
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if path.suffix.lower() not in extensions:
        ending = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise RcdeployError(f"{path} has {ending}, which names no image format", fix="For example: -o out.png")
    if path.is_dir():
        raise RcdeployError(f"{path} is a folder", fix="Name a file, for example: -o out.png")


def save_images(images: Sequence[Image.Image], path: Path) -> list[Path]:
    """Write one image to `path`, several to path-0, path-1, ... Raises RcdeployError when that is not possible."""
    files = [path] if len(images) == 1 else [path.with_stem(f"{path.stem}-{k}") for k in range(len(images))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, image in zip(files, images, strict=True):
            image.save(file)
    except (OSError, ValueError) as error:  # ValueError: an ending that names no format
        raise RcdeployError(f"{path} cannot be written: {error}", fix="For example: -o out.png") from None
    return files
