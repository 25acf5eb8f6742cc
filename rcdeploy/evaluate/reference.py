"""What pictures are compared with by a Frechet distance: statistics of a file, or of a folder of pictures."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256, user_cache

from .frechet import Statistics
from .networks import READ_AT_ONCE, Network

Progress = Callable[[str, int, int], None]
"""stage, done, of how many"""


def resized(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture -> uint8 [3, h, w] of size (h, w), by Pillow's bicubic filter, its proportions given up for the size.

    This is how the paper's reference is made (BK-SDM's script), and how drawn pictures are made smaller.
    """
    image = image.convert("RGB")
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def open_reference(
    path: Path, network: Network, size: tuple[int, int], progress: Progress = lambda *_: None
) -> tuple[Statistics, str]:
    """-> statistics of `network`'s features, and what they are of (for the record).

    path: a .safetensors file (mean, covariance, count), an .npz file of pytorch-fid (mu, sigma; it resizes a little
    otherwise: a folder is the better reference), or a folder of pictures, looked through once: the statistics are kept
    in the user's cache until a picture or the network changes.
    Raises RcdeployError when it is none of these.
    """
    if path.is_dir():
        return _of_folder(path, network, size, progress)
    if path.suffix == ".safetensors" and path.exists():
        return Statistics.load(path), sha256(path)
    if path.suffix == ".npz" and path.exists():
        return _of_npz(path), sha256(path)
    raise RcdeployError(
        f"{path} is no reference: {'its ending is unknown' if path.exists() else 'nothing is there'}",
        fix="Give a folder of pictures, or statistics in a .safetensors or .npz file.",
    )


def _of_folder(folder: Path, network: Network, size: tuple[int, int], progress: Progress) -> tuple[Statistics, str]:
    known = Image.registered_extensions()
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in known and p.is_file())
    if len(files) < 2:
        raise RcdeployError(f"{folder} holds {len(files)} pictures: a reference needs many", fix="Name another folder.")
    seen = [[p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    said = json.dumps([network.key, size, str(folder.resolve()), seen])
    digest = hashlib.sha256(said.encode()).hexdigest()
    kept = user_cache() / "references" / f"{network.key}-{digest[:16]}.safetensors"
    if kept.is_file():
        return Statistics.load(kept), digest
    features = []
    for start in range(0, len(files), READ_AT_ONCE):
        progress("reference", start, len(files))
        images = torch.stack([_opened(file, size) for file in files[start : start + READ_AT_ONCE]])
        features.append(network.read_all(images, [""] * len(images))["features"])
    progress("reference", len(files), len(files))
    found = Statistics.of(torch.cat(features))
    found.save(kept)
    return found, digest


def _opened(file: Path, size: tuple[int, int]) -> Tensor:
    try:
        with Image.open(file) as image:
            return resized(image, size)
    except (OSError, ValueError, SyntaxError) as error:
        raise RcdeployError(f"{file} cannot be read as a picture: {error}", fix="Mend or remove it.") from None


def _of_npz(path: Path) -> Statistics:
    """An archive of plain arrays, read without pickle. It does not say of how many pictures: count is 0."""

    def array(archive: zipfile.ZipFile, name: str) -> Any:
        with archive.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    try:
        with zipfile.ZipFile(path) as archive:
            mean, covariance = (torch.from_numpy(array(archive, name)).double() for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise RcdeployError(f"{path} cannot be read as statistics (mu, sigma): {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise RcdeployError(
            f"{path}: mu is {tuple(mean.shape)}, sigma {tuple(covariance.shape)}: no mean and covariance"
        )
    return Statistics(mean, covariance, 0)
