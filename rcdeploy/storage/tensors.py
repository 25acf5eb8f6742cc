"""Tensors on disk: safetensors only, written beside their place and renamed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file; of a view only its own elements. Raises RcdeployError when the disk is full."""
    try:
        with replacing(path) as beside:
            save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, beside)
    except SafetensorError as error:
        raise RcdeployError(
            f"cannot write {path}: {error}",
            fix="Free some room and run the same command again: finished parts stay.",
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises RcdeployError, naming the file, when it is missing or truncated."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RcdeployError(f"{path} cannot be read: {error}") from error


def is_whole(path: Path) -> bool:
    """Whether the file's length is what its header announces. Reads the header only."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > size - 8:
                return False
            header = json.loads(f.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(size == 8 + length + max(ends))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, struct.error):
        return False
