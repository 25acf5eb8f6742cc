"""Digests of files, remembered in the user's cache folder until a file changes."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import RcdeployError
from .files import sha256, user_cache, write_json

MAX_REMEMBERED = 1_000


class DigestCache:
    """sha256 of files by path, inode, size and times of change. Works without a cache folder: all is read again."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self.changed = False
        self.file: Path | None = None
        try:
            self.file = user_cache() / "digests.json"
            data = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        except (RcdeployError, OSError, ValueError, RecursionError):
            data = {}  # no cache folder, or a damaged file
        if isinstance(data, dict):
            self.digests = {key: value for key, value in data.items() if isinstance(value, str)}

    def sha256(self, file: Path) -> str:
        status = file.stat()
        key = f"{file.resolve()}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        if key not in self.digests:
            self.digests[key] = sha256(file)
            self.changed = True
        return self.digests[key]

    def save(self) -> None:
        if not self.changed or self.file is None:
            return
        try:
            write_json(self.file, dict(list(self.digests.items())[-MAX_REMEMBERED:]))
        except (RcdeployError, OSError):
            return  # a read-only device works too: the digests are computed again next time
