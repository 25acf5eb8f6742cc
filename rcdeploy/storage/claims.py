"""Claims: how processes and machines that share a folder agree on who makes what, with nothing but files."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import is_running, read_json, remove_new

STALE_SECONDS = 900
"""a claim that was not touched for so long belongs to a machine that died"""


class Claim:
    """The right to make one thing: a file NAME.claim that only one process can create.

    take() is False while somebody else holds it. A claim is taken over when its process (on this machine) is gone, or
    when it was not touched for STALE_SECONDS. Two holders would do double work, never harm: what they make is the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".claim")

    def take(self) -> bool:
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        with suppress(FileNotFoundError):
            if self._owner_is_gone(me["host"]) or time.time() - self.path.stat().st_mtime > STALE_SECONDS:
                self.path.unlink(missing_ok=True)
        try:
            with self.path.open("x") as f:
                json.dump(me, f)
        except FileExistsError:
            return False
        except OSError as error:
            raise RcdeployError(
                f"cannot write {self.path}: {error.strerror}", fix="Mend that and run the same command again."
            ) from error
        return True

    def _owner_is_gone(self, host: object) -> bool:
        try:
            owner = read_json(self.path)
            return bool(owner["host"] == host and not is_running(int(owner["pid"])))
        except (RcdeployError, KeyError, TypeError, ValueError):
            return False  # not written yet: only its age tells

    def touch(self) -> None:
        with suppress(FileNotFoundError):
            os.utime(self.path)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)


def make_once(make: Callable[[], None], whole: Path, claim: Claim, made: Iterable[Path]) -> None:
    """Calls `make` unless the file `whole` is there; processes that come at once wait for the one that makes it.

    made: what `make` writes, then the folders above; what of it was not there before is removed if `make` fails.
    """
    new = [path for path in made if not path.exists()]
    while not whole.is_file():
        claim.path.parent.mkdir(parents=True, exist_ok=True)
        if not claim.take():
            time.sleep(0.5)
            continue
        try:
            if not whole.is_file():  # between the look and the claim another process may have finished it
                make()
        except BaseException:
            remove_new(new[:1])  # still ours: another process may begin it as soon as the claim is gone
            claim.release()
            for folder in new[1:]:
                with suppress(OSError):  # not empty, or not made yet
                    folder.rmdir()
            raise
        claim.release()
