"""Reference statistics of a Frechet distance: from a file, or computed once from a folder of images."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256, user_cache

from ..progress import Progress, no_progress
from .frechet import Statistics
from .images import resized
from .networks import BATCH_SIZE, Network

MAX_STATISTICS_BYTES = 2**28
"""of one array in an .npz file, 8 times that of 2,048 features: a larger one is no covariance"""
MAX_IMAGE_PIXELS = 2**26
"""of one reference image, 8192 x 8192"""


def open_reference(
    path: Path, network: Network, size: tuple[int, int], progress: Progress = no_progress
) -> tuple[Statistics, str]:
    """Statistics of the network's features for real images, and a digest of what they were computed from.

    Args:
        path: a .safetensors file (mean, covariance, count); an .npz file of pytorch-fid (mu, sigma; its resizing
            differs a little, so a folder is the better reference); or a folder of images, read once: its statistics
            stay in the user's cache until an image or the network changes.
        network: computes the features of a folder's images.
        size: (height, width) to which the images of a folder are resized.

    Raises:
        RcdeployError: the path is none of these, or its contents are damaged.
    """
    if path.is_dir():
        return _of_folder(path, network, size, progress)
    if path.suffix == ".safetensors" and path.is_file():
        return Statistics.load(path), sha256(path)
    if path.suffix == ".npz" and path.is_file():
        return _of_npz(path), sha256(path)
    problem = "unknown file name extension" if path.is_file() else "no such file or folder"
    raise RcdeployError(
        f"{path} cannot be a reference: {problem}",
        fix="Give a folder of images, or statistics in a .safetensors or .npz file.",
    )


def _of_folder(folder: Path, network: Network, size: tuple[int, int], progress: Progress) -> tuple[Statistics, str]:
    extensions = Image.registered_extensions()
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in extensions and p.is_file())
    if len(files) < 2:
        raise RcdeployError(f"{folder} holds {len(files)} images: a reference needs many", fix="Name another folder.")
    state = [[p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    identity = json.dumps([network.key, size, str(folder.resolve()), state])
    digest = hashlib.sha256(identity.encode()).hexdigest()
    cached = user_cache() / "references" / f"{network.key}-{digest[:16]}.safetensors"
    if cached.is_file():
        return Statistics.load(cached), digest
    features = []
    for start in range(0, len(files), BATCH_SIZE):
        progress("reference", start, len(files))
        images = torch.stack([_read_image(file, size) for file in files[start : start + BATCH_SIZE]])
        features.append(network(images, [""] * len(images))["features"])
    progress("reference", len(files), len(files))
    statistics = Statistics.of(torch.cat(features))
    statistics.save(cached)
    return statistics, digest


def _read_image(file: Path, size: tuple[int, int]) -> Tensor:
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_IMAGE_PIXELS:,}")
            return resized(image, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RcdeployError(f"{file} cannot be read as an image: {error}", fix="Repair or remove it.") from None


def _of_npz(path: Path) -> Statistics:
    """From an archive of plain arrays, read without pickle. It does not hold the number of images: count is 0."""

    def array(archive: zipfile.ZipFile, name: str) -> Any:
        member = archive.getinfo(f"{name}.npy")
        if member.file_size > MAX_STATISTICS_BYTES:
            raise ValueError(f"{name} has {member.file_size:,} bytes, more than {MAX_STATISTICS_BYTES:,}")
        with archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    try:
        with zipfile.ZipFile(path) as archive:
            mean, covariance = (torch.from_numpy(array(archive, name)).double() for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise RcdeployError(f"{path} cannot be read as statistics (mu, sigma): {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"mu is {tuple(mean.shape)}, sigma {tuple(covariance.shape)}"
        raise RcdeployError(f"{path}: {shapes}, but a mean [d] and a covariance [d, d] are needed")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise RcdeployError(f"{path}: mu or sigma holds NaN or infinite values")
    return Statistics(mean, covariance, 0)
