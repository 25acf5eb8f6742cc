"""Digests of files, remembered in the user's cache folder until a file changes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from .errors import RcdeployError
from .files import sha256, user_cache, write_json

MAX_REMEMBERED = 10_000
SETTLED_SECONDS = 2.0
"""a file that changed less long ago may change again within the same tick of the file system's clock"""


class DigestCache:
    """sha256 of files by path, inode, size and times of change. Works without a cache folder: all is read again."""

    def __init__(self, *, remember: bool = True) -> None:
        """remember: take digests of earlier processes, and keep this one's for later ones."""
        self.digests: dict[str, str] = {}
        self._unsettled: set[str] = set()
        self.changed = False
        self.file: Path | None = None
        if not remember:
            return
        try:
            self.file = user_cache() / "digests.json"
            data = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        except (RcdeployError, OSError, ValueError, RecursionError):
            data = {}  # no cache folder, or a damaged file
        if isinstance(data, dict):
            self.digests = {key: value for key, value in data.items() if isinstance(value, str)}

    def sha256(self, file: Path, compute: Callable[[Path], str] = sha256) -> str:
        """The digest of a file. compute: a function that makes it, of a name of its own."""
        status = file.stat()
        key = f"{file.resolve()}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        if compute is not sha256:
            key += f":{compute.__name__}"
        if key not in self.digests:
            self.digests[key] = compute(file)
            self.changed = True
            if time.time() - status.st_ctime < SETTLED_SECONDS:
                self._unsettled.add(key)
        return self.digests[key]

    def save(self) -> None:
        if not self.changed or self.file is None:
            return
        settled = [(key, digest) for key, digest in self.digests.items() if key not in self._unsettled]
        try:
            write_json(self.file, dict(settled[-MAX_REMEMBERED:]))
            self.changed = False
        except (RcdeployError, OSError):
            return  # a read-only device works too: the digests are computed again next time
