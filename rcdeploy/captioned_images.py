"""Images that belong to captions: decoded from a latent cache, or read from a folder with metadata.csv."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

from .diffusion_model import LatentDiffusionModel
from .latent_cache import LatentCache
from .real_images import captioned_images

BATCH_SIZE = 8


def images_of_captions(source: Path, captions: Collection[str]) -> Iterator[tuple[list[str], Tensor]]:
    """Yields (captions, images [n, 3, h, w] in [0, 1]) for those of `captions` that `source` has an image of.

    source: a latent cache, or a folder of images with metadata.csv.
    """
    if (source / "index.json").is_file():
        return _decoded(source, captions)
    return _read(source, captions)


def _decoded(folder: Path, captions: Collection[str]) -> Iterator[tuple[list[str], Tensor]]:
    """Latents of a cache, decoded by the teacher that made them."""
    cache = LatentCache.open(folder)
    rows = [i for i, prompt in enumerate(cache.prompts) if prompt in captions]
    recorded = cache.manifest.recipe["teacher"]
    teacher = LatentDiffusionModel(recorded["path"], revision=recorded["revision"])
    if teacher.revision != cache.manifest.teacher["revision"]:
        raise RcdeployError(
            f"the teacher {teacher.folder} is not the one that made the latent cache {folder}",
            fix="Restore the teacher, or make the cache anew with `rcdeploy cache RECIPE`.",
        )
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        yield cache.prompts.take(batch), teacher.decode(cache.latents(batch).to(teacher.device), BATCH_SIZE)


def _read(folder: Path, captions: Collection[str]) -> Iterator[tuple[list[str], Tensor]]:
    """Images of a folder, one at a time: their sizes may differ."""
    for file, caption in captioned_images(folder):
        if caption in captions:
            with Image.open(file) as image:
                pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
            yield [caption], pixels.permute(2, 0, 1)[None] / 255
