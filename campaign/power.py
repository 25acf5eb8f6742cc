"""A power cut, simulated: a process ends before its n-th change of the disk, and what it did not sync is lost.

While the command runs, every sync and every rename and removal is written to a journal, and what a rename or removal
takes away is kept aside (hard links). After the cut, contents that were not synced since they were written become
empty, shorter or zeros, or stay; renames and removals whose folder was not synced afterwards are undone, or stay: a
file system promises no more.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from .guard import GUARD, Guard

RESTART_SECONDS = 30
Known = dict[int, tuple[int, int]]
"""inode -> (size, time of the last change) of contents that are on the disk"""


@dataclass
class Recorder:
    """Writes the journal, counts changes, and ends the process before number `cut`.

    aside: a folder for the journal and what is taken away; on the file system of what is watched.
    """

    aside: Path
    cut: int | None = None
    guard: Guard = GUARD
    count: int = 0
    _file: Any = field(default=None, repr=False)

    def install(self) -> None:
        self._file = os.open(self.aside / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        fsync = os.fsync

        def recording_fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._before_change()
            fsync(number)
            facts = os.fstat(number)
            self._write("sync", os.readlink(f"/proc/self/fd/{number}"), facts.st_ino, facts.st_size, facts.st_mtime_ns)

        os.fsync = recording_fsync  # type: ignore[assignment]
        self.guard.observer = self.observe

    def observe(self, event: str, paths: tuple[str, ...]) -> None:
        self._before_change()
        if event == "os.rename":
            self._write("rename", *paths, self._keep(paths[1]))
        elif event == "os.remove":
            self._write("remove", *paths, self._keep(paths[0]))

    def _before_change(self) -> None:
        self.count += 1
        if self.count == self.cut:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.aside / "count").write_text(str(self.count))

    def _keep(self, path: str) -> str:
        """A second name for a file that is about to go; "" for what is no file."""
        name = str(self.aside / f"kept-{self.count}")
        with suppress(OSError):
            os.link(path, name, follow_symlinks=False)
            return name
        return ""

    def _write(self, *entry: Any) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")


def known_contents(folder: Path) -> Known:
    """The contents of all files below, as they are before the command: those are on the disk."""
    found = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        if stat.S_ISREG(facts.st_mode):
            found[facts.st_ino] = (facts.st_size, facts.st_mtime_ns)
    return found


def cut_power(folder: Path, aside: Path, known: Known, random: Random) -> list[str]:
    """Take from `folder` what the journal does not prove to be on the disk; returns what, in words."""
    lines = (aside / "journal").read_text().splitlines() if (aside / "journal").is_file() else []
    journal = [json.loads(line) for line in lines]
    for entry in journal:
        if entry[0] == "sync":
            known[entry[2]] = (entry[3], entry[4])
    words = _undo_names(journal, random)
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or known.get(facts.st_ino) == (facts.st_size, facts.st_mtime_ns):
            continue
        first = min(known.get(facts.st_ino, (0, 0))[0], facts.st_size)
        what, change = random.choice(_losses(first, facts.st_size, random))
        change(path)
        words.append(f"{path.relative_to(folder)} {what}")
    for claim in folder.rglob("*.claim"):  # a machine takes time to start again
        os.utime(claim, times=(time.time() - RESTART_SECONDS,) * 2)
    return words


def _losses(first: int, size: int, random: Random) -> list[tuple[str, Callable[[Path], None]]]:
    """What may become of a file of which only the first bytes are on the disk."""
    part = random.randint(first, size)
    losses: list[tuple[str, Callable[[Path], None]]] = [
        ("stays", lambda path: None),
        (f"has {part} of {size} bytes", lambda path: os.truncate(path, part)),
        (f"has {first} of {size} bytes", lambda path: os.truncate(path, first)),
        ("has zeros", lambda path: path.write_bytes(path.read_bytes()[:first] + bytes(size - first))),
    ]
    if not first:
        losses.append(("is not there", lambda path: path.unlink()))
    return losses


def _undo_names(journal: list[list[Any]], random: Random) -> list[str]:
    words = []
    for index in reversed(range(len(journal))):
        kind, *paths = journal[index]
        if kind == "sync" or _folder_synced(journal[index:], paths[-2]) or random.random() < 0.5:
            continue
        if kind == "rename":
            source, target, kept = paths
            # an entry is written before its change: the last one may not have happened
            if os.path.lexists(source) or not os.path.lexists(target) or not Path(source).parent.is_dir():
                continue
            os.rename(target, source)
            if kept:
                os.link(kept, target)
            words.append(f"the rename to {Path(target).name} is undone")
        else:
            target, kept = paths
            if kept and not os.path.lexists(target):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                os.link(kept, target)
                words.append(f"{Path(target).parent.name}/{Path(target).name} is there again")
    return words


def _folder_synced(later: list[list[Any]], path: str) -> bool:
    return any(entry[0] == "sync" and entry[1] == str(Path(path).parent) for entry in later)
