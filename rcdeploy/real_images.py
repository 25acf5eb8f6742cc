"""Real images as the second source of a latent cache: for the BK-SDM baseline and the paper's "real image" rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import inside

from .diffusion_model import LatentDiffusionModel
from .vae import VaeEncoder


def captioned_images(folder: Path) -> list[tuple[Path, str]]:
    """(image file, caption) of each row of folder/metadata.csv.

    Its columns are file_name and text, as in Hugging Face's imagefolder. Raises RcdeployError when the table or one of
    the images is missing, or an image lies outside the folder.
    """
    table = folder / "metadata.csv"
    if not table.is_file():
        raise RcdeployError(f"{folder} has no metadata.csv", fix="Write one with the columns file_name and text.")
    with table.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    if not rows or not {"file_name", "text"} <= set(rows[0]):
        raise RcdeployError(f"{table} needs the columns file_name and text, and at least one row")
    pairs = [(inside(folder, row["file_name"]), " ".join(row["text"].split())) for row in rows]
    missing = [str(p) for p, _ in pairs if not p.is_file()]
    if missing:
        raise RcdeployError(f"{table}: {len(missing)} of {len(pairs)} images are missing, the first is {missing[0]}")
    return pairs


@torch.no_grad()
def encode_images(teacher: LatentDiffusionModel, files: Sequence[Path], shape: tuple[int, int, int]) -> Tensor:
    """Image files, cropped to the central square and resized -> scaled latents [n, c, h, w] (the posterior's mode).

    shape: [c, h, w] of a latent.
    """
    size = shape[1] * teacher.pixels_per_latent
    images = []
    for file in files:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 127.5 - 1)
    means: Tensor = VaeEncoder(teacher.vae)(torch.stack(images).to(teacher.device)).chunk(2, dim=1)[0]
    return means * teacher.scaling_factor
