"""Watches a process through Python's audit events: writes outside its folders, sockets, unpickling, other programs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    # event -> positions of the paths that it changes, and of the folder descriptors that they are relative to
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
}
PROGRAMS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec")
HARMLESS_PROGRAMS = ("fc-list",)
"""matplotlib looks for fonts with it"""
INTERNET = (socket.AF_INET, socket.AF_INET6)
SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg")
ALWAYS_ALLOWED = ("/dev/null", "/proc/self/clear_refs", "/dev/shm")

Observer = Callable[[str, tuple[str, ...]], None]
"""receives an event that changes files before it happens, and the absolute paths that it changes"""


class Guard:
    """violations: what was done that no attempt may do, in words, since `begin`. observer: see Observer."""

    def __init__(self) -> None:
        self._allowed: tuple[str, ...] = ()
        self._armed = False
        self._internet = self._sockets = True
        self.violations: list[str] = []
        self.observer: Observer | None = None

    def install(self, *allowed: Path) -> None:
        """Watch until the process ends. allowed: folders in which it may write."""
        self._allowed = tuple(os.path.realpath(folder) for folder in allowed)
        sys.addaudithook(self._hook)

    def begin(self, *, internet: bool, sockets: bool = True) -> None:
        """internet: connections and look-ups are allowed. sockets: they may at least be made."""
        self.violations = []
        self._internet = internet
        self._sockets = sockets
        self._armed = True

    def end(self) -> list[str]:
        self._armed = False
        return self.violations

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and isinstance(flags, int) and flags & WRITING:
                self._changes("open", (_absolute(path, None),))
        elif event in CHANGES:
            self._changes(event, tuple(_absolute(arguments[i], _at(arguments, fd)) for i, fd in CHANGES[event]))
        elif event == "pickle.find_class":
            self.violations.append(f"it unpickled {arguments[0]}.{arguments[1]}")
        elif event in PROGRAMS and arguments[0] not in HARMLESS_PROGRAMS:
            self.violations.append(f"it ran a program: {str(arguments[:2])[:200]}")
        elif event == "socket.__new__" and arguments[1] in INTERNET and not self._sockets:
            self.violations.append("it opened an internet socket")
        elif event in SENDING and arguments[0].family in INTERNET and not self._internet:
            self.violations.append(f"it sent something to {arguments[1]}")
        elif event == "socket.getaddrinfo" and not self._internet:
            self.violations.append(f"it looked up {arguments[0]}")

    def _changes(self, event: str, paths: tuple[str, ...]) -> None:
        for path in paths:
            if not path.startswith((*(f"{folder}/" for folder in self._allowed), *ALWAYS_ALLOWED)):
                self.violations.append(f"{event} outside its folder: {path}")
        if self.observer:
            self._armed = False  # what the observer does is not observed
            try:
                self.observer(event, paths)
            finally:
                self._armed = True


def _at(arguments: tuple[Any, ...], position: int | None) -> int | None:
    descriptor = arguments[position] if position is not None and position < len(arguments) else None
    return descriptor if isinstance(descriptor, int) and descriptor >= 0 else None


def _absolute(path: Any, descriptor: int | None) -> str:
    """The path without links in its folders; its last part may be a link, which is what is changed."""
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    if descriptor is not None:
        text = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), text)
    head, tail = os.path.split(text)
    try:
        return os.path.join(os.path.realpath(head), tail)
    except (OSError, ValueError):
        return text


GUARD = Guard()
"""of this process"""
