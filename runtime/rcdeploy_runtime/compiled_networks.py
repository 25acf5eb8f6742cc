"""What OpenVINO has compiled, kept beside a package's tuning: the next process maps it instead of compiling anew.

A file ends with the sha256 of what comes before: OpenVINO would take a damaged one for a whole one. It is of this
package and machine, as the tuning is. Nothing of it is needed: without a cache folder, without memory or with a full
disk, networks are compiled as ever.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RcdeployError
from .files import replacing
from .machine import available_memory
from .noise_schedule import Array

MAX_KEPT = 2
"""compiled forms of one network, the last ones: it is compiled for the shapes of a process's first image"""
MEMORY_TO_KEEP = 3
"""times a network's weights that OpenVINO takes to export what it has compiled, and some more"""
ABANDONED_SECONDS = 3_600
"""after which what a process has not finished writing will not be finished"""
DIGEST_BYTES = 32


class CompiledNetworks:
    """Those of one network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: str) -> Array | None:
        """The bytes kept under `key`, mapped; None where there are none, or not all."""
        file = self._file(key)
        try:
            # copy on write: OpenVINO takes no array that is read-only; none is written to
            contents = np.memmap(file, np.uint8, "c") if file.is_file() else np.empty(0, np.uint8)
        except (OSError, ValueError):
            return None
        if hashlib.sha256(contents[:-DIGEST_BYTES].data).digest() != contents[-DIGEST_BYTES:].tobytes():
            return None
        return contents[:-DIGEST_BYTES]

    def keep(self, key: str, compiled: Any, weight_bytes: int) -> None:
        """Writes what OpenVINO exports of a compiled network with so many bytes of weights; the oldest ones go."""
        if (free := available_memory()) is not None and free < MEMORY_TO_KEEP * weight_bytes:
            return
        with (
            suppress(OSError, RcdeployError, RuntimeError, MemoryError),
            replacing(self._file(key)) as beside,
            beside.open("wb") as file,
        ):
            exported = compiled.export_model().getbuffer()
            file.write(exported)
            file.write(hashlib.sha256(exported).digest())
        with suppress(OSError):
            files = sorted(self.folder.glob("*.blob"), key=lambda file: file.stat().st_mtime_ns)
            abandoned = [x for x in self.folder.glob(".*.part") if time.time() - x.stat().st_mtime > ABANDONED_SECONDS]
            for unneeded in [*files[:-MAX_KEPT], *abandoned]:
                unneeded.unlink()

    def remove(self, key: str) -> None:
        with suppress(OSError):
            self._file(key).unlink()

    def _file(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.blob"
