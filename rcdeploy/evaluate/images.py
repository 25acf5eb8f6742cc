"""Images as tensors and files: resizing as the paper's reference was made, PNGs for other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdeploy_runtime.files import read_json, replacing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resized(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """An image -> uint8 [3, h, w] of size (h, w), by Pillow's bicubic filter; the aspect ratio is not kept.

    This is how the paper's reference is made (BK-SDM's script), and how generated images are made smaller.
    """
    image = image.convert("RGB")
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def resized_batch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images uint8 [n, 3, h, w] -> uint8 [n, 3, *size], each as `resized`."""
    if tuple(images.shape[2:]) == size:
        return images
    return torch.stack([resized(to_pil(image), size) for image in images])


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [3, h, w] -> an RGB image."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def write_png(image: Tensor, path: Path) -> None:
    """Writes uint8 [3, h, w] as a PNG."""
    with replacing(path) as temporary:
        to_pil(image).save(temporary, "PNG")


def normalization(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3, 1, 1] in a model's preprocessor_config.json; CLIP's (and BLIP's) by default."""
    file = folder / "preprocessor_config.json"
    config = read_json(file) if file.is_file() else {}
    mean = torch.tensor(config.get("image_mean", CLIP_MEAN))
    std = torch.tensor(config.get("image_std", CLIP_STD))
    return mean.view(3, 1, 1), std.view(3, 1, 1)
