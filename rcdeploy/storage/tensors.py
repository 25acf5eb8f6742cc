"""Tensors on disk: safetensors only, written beside their place and renamed."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import HASH_CHUNK_BYTES, replacing

DIGEST = "sha256"
"""the key of a file's own digest in its metadata"""
BLANK = "0" * 64
"""stands in the place of the digest while it is computed"""


def save_tensors(path: Path, tensors: dict[str, Tensor], *, digest: bool = False) -> None:
    """Writes a safetensors file; of a view only its own elements. Raises RcdeployError when the disk is full.

    digest: record the file's own digest in its metadata (own_digest). It then arrives with the file, in one rename,
    whoever else writes to the folder.
    """
    metadata = {DIGEST: BLANK} if digest else None
    try:
        with replacing(path) as beside:
            save_file(_apart(tensors), beside, metadata)
            if digest:
                _fill_in_digest(beside)
    except SafetensorError as error:
        raise RcdeployError(
            f"cannot write {path}: {error}",
            fix="Free some room and run the same command again: finished parts stay.",
        ) from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with a storage of its own. Only what has none is copied: a student's moments take gigabytes."""
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


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
            raw = _header(f, size)
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(size == 8 + len(raw) + max(ends))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, struct.error):
        return False


def recorded_digest(path: Path) -> str | None:
    """The digest in a file's metadata; None for files without one, such as those of rcdeploy 0.1."""
    with path.open("rb") as f:
        metadata: dict[str, Any] = json.loads(_header(f, path.stat().st_size)).get("__metadata__") or {}
    recorded = metadata.get(DIGEST)
    return None if recorded is None else str(recorded)


def own_digest(path: Path) -> str:
    """sha256 of a whole file, header included, with the digest in its metadata replaced by BLANK."""
    recorded = recorded_digest(path) or BLANK
    with path.open("rb") as f:
        raw = _header(f, path.stat().st_size)
        digest = hashlib.sha256(struct.pack("<Q", len(raw)) + raw.replace(recorded.encode(), BLANK.encode()))
        while chunk := f.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fill_in_digest(path: Path) -> None:
    digest = own_digest(path)
    with path.open("r+b") as f:
        place = 8 + _header(f, path.stat().st_size).index(BLANK.encode())
        f.seek(place)
        f.write(digest.encode())


def _header(file: BinaryIO, size: int) -> bytes:
    """The JSON of a safetensors file of this size. Raises ValueError or struct.error when the file is shorter."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise ValueError("the file ends within its header")
    return file.read(length)
