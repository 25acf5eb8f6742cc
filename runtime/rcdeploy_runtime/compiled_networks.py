"""What OpenVINO has compiled, kept beside a package's tuning: the next process maps it instead of compiling anew.

A file is whole or not there, and of this package, machine and versions, as the tuning is. Nothing of it is needed:
without a cache folder, or with a full disk, networks are compiled as ever.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RcdeployError
from .files import replacing
from .noise_schedule import Array

MAX_KEPT = 2
"""compiled forms of one network, the last ones: it is compiled for the shapes of a process's first image"""


class CompiledNetworks:
    """Those of one network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: str) -> Array | None:
        """The bytes kept under `key`, mapped; None where there are none."""
        file = self._file(key)
        try:
            # copy on write: OpenVINO takes no array that is read-only; none is written to
            return np.memmap(file, np.uint8, "c") if file.is_file() else None
        except (OSError, ValueError):
            return None

    def keep(self, key: str, compiled: Any) -> None:
        """Writes what OpenVINO exports of a compiled network; the oldest ones go."""
        with suppress(OSError, RcdeployError, RuntimeError), replacing(self._file(key)) as beside:
            beside.write_bytes(compiled.export_model().getbuffer())
        with suppress(OSError):
            files = sorted(self.folder.glob("*.blob"), key=lambda file: file.stat().st_mtime_ns)
            for file in files[:-MAX_KEPT]:
                file.unlink()

    def remove(self, key: str) -> None:
        with suppress(OSError):
            self._file(key).unlink()

    def _file(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.blob"
