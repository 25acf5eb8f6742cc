"""Claims: how processes and machines that share a folder agree on who makes what, with nothing but files."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import is_running, read_json, remove_new

from ..progress import Log, no_log

HEARTBEAT_SECONDS = 15.0
"""how often a holder renews its claims"""
STALE_SECONDS = 120.0
"""a claim of another machine that was not renewed for so long is abandoned"""
STALE_SECONDS_WITHOUT_HEARTBEAT = 900.0
"""the same for claims of earlier versions, which were renewed between pieces of work only"""
STALE_SECONDS_UNREADABLE = 10.0
"""a claim that is empty or not JSON was being written when its process was killed"""
POLL_SECONDS = 0.5
NOTICE_SECONDS = 2.0
"""shorter waits are not worth a remark"""


@dataclass(frozen=True)
class Holder:
    """The process that holds a claim.

    started: distinguishes the process from a later one of the same pid. since: when it took the claim, in seconds since
    the epoch. Both are None in claims of earlier versions.
    """

    host: str
    pid: int
    started: str | None = None
    since: float | None = None

    @classmethod
    def this_process(cls) -> Holder:
        return cls(socket.gethostname(), os.getpid(), process_start(os.getpid()), round(time.time(), 3))

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """None when the claim is gone, empty or not a claim."""
        try:
            entry = read_json(path)
            started = entry.get("started")
            since = entry.get("since")
            return cls(
                str(entry["host"]),
                int(entry["pid"]),
                None if started is None else str(started),
                None if since is None else float(since),
            )
        except (RcdeployError, AttributeError, KeyError, TypeError, ValueError):
            return None

    @property
    def is_on_this_machine(self) -> bool:
        return self.host == socket.gethostname()

    def has_ended(self) -> bool:
        """Whether the process, one of this machine, is gone: its pid is free or belongs to a later process."""
        if self.started is None:
            return not is_running(self.pid)
        if self.pid != os.getpid() and not is_running(self.pid):
            return True
        started = process_start(self.pid)
        return started is not None and started != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def since_text(self) -> str:
        """ " since 2026-01-31 14:05:00", empty when it is not known."""
        if self.since is None:
            return ""
        return time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(self.since))


def process_start(pid: int) -> str | None:
    """When a process of this machine started, in a form to compare only; None when that cannot be determined.

    Ticks since the machine booted where /proc has them: they do not change when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "ended" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    import psutil  # type: ignore[import-untyped]

    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return None


class Claim:
    """The right to make one thing: a file NAME.claim that only one process can create.

    take() is False while another process holds it. A thread of the holder renews the file until it is released, however
    long the work takes. A claim is taken over when its process has ended (on this machine, at once) or has not renewed
    it for STALE_SECONDS (on another). Two holders would do double work, never harm: what they make is the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".claim")
        self._own: Holder | None = None
        self._released = threading.Event()

    def take(self) -> bool:
        """Raises RcdeployError when the claim cannot be written."""
        holder = self.holder()
        if holder is not None and holder.is_on_this_machine and holder.started and not holder.has_ended():
            return False
        own = Holder.this_process()
        try:
            with self._written_beside(own) as beside:
                # the time by the clock of the file system, which another machine's may differ from
                self._remove_abandoned(now=beside.stat().st_mtime)
                self._create(beside)
        except FileExistsError:
            return False
        except OSError as error:
            raise RcdeployError(
                f"cannot write {self.path}: {error.strerror}",
                fix="Free some room, or correct the permissions, and run the same command again.",
            ) from error
        self._own = own
        self._released = threading.Event()
        threading.Thread(target=self._renew, args=(own, self._released), name=str(self.path), daemon=True).start()
        return True

    def holder(self) -> Holder | None:
        """Who holds the claim, if that can be read."""
        return Holder.read(self.path)

    def touch(self) -> None:
        """Renew the claim now; while it is held a thread does so by itself."""
        with suppress(FileNotFoundError):
            os.utime(self.path)

    def release(self) -> None:
        """Remove the claim, unless another process has taken it over meanwhile."""
        self._released.set()
        if self._own is not None and self.holder() in (None, self._own):
            self.path.unlink(missing_ok=True)
        self._own = None

    @contextmanager
    def _written_beside(self, own: Holder) -> Iterator[Path]:
        beside = self.path.with_name(f".{self.path.name}.{own.pid}-{threading.get_ident()}.part")
        try:
            beside.write_text(json.dumps(asdict(own)), encoding="utf-8")
            yield beside
        finally:
            beside.unlink(missing_ok=True)

    def _create(self, beside: Path) -> None:
        """The claim appears with its content at once. Raises FileExistsError when another process was faster."""
        try:
            os.link(beside, self.path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with self.path.open("x", encoding="utf-8") as file:
                file.write(beside.read_text(encoding="utf-8"))

    def _remove_abandoned(self, now: float) -> None:
        try:
            before = self.path.stat()
        except FileNotFoundError:
            return
        if not self._is_abandoned(now - before.st_mtime):
            return
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}-{threading.get_ident()}.old")
        try:
            with suppress(FileNotFoundError):
                self.path.rename(aside)
                moved = aside.stat()
                if (moved.st_ino, moved.st_mtime_ns) != (before.st_ino, before.st_mtime_ns):
                    # another process took it over between the two looks: it is theirs again
                    with suppress(OSError):
                        os.link(aside, self.path)
        finally:
            aside.unlink(missing_ok=True)

    def _is_abandoned(self, age: float) -> bool:
        """age: seconds since it was renewed."""
        holder = self.holder()
        if holder is None:
            return age > STALE_SECONDS_UNREADABLE
        if holder.is_on_this_machine and holder.has_ended():
            return True
        if holder.since is None:
            return age > STALE_SECONDS_WITHOUT_HEARTBEAT
        return not holder.is_on_this_machine and age > STALE_SECONDS

    def _renew(self, own: Holder, released: threading.Event) -> None:
        while not released.wait(HEARTBEAT_SECONDS):
            holder = self.holder()
            if holder is not None and holder != own:
                return  # this machine slept too long and another process took over
            if holder is not None:
                with suppress(OSError):
                    os.utime(self.path)


class Waiting:
    """Waits for others, and logs for whom: once for each holder, after NOTICE_SECONDS."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._start = 0.0
        self._end = 0.0
        self._logged: set[tuple[str, int]] = set()

    def wait(self, claim: Claim, target: Path) -> None:
        """Sleep for POLL_SECONDS. target: what the holder of the claim is making."""
        now = time.monotonic()
        if now - self._end > POLL_SECONDS:  # the caller has worked since the last wait
            self._start = now
        holder = claim.holder()
        if holder and now - self._start >= NOTICE_SECONDS:
            key = (holder.host, holder.pid)
            if key not in self._logged:
                self._logged.add(key)
                self._log(f"waiting for {holder}, which has been making {target}{holder.since_text}")
        time.sleep(POLL_SECONDS)
        self._end = time.monotonic()


def make_once(make: Callable[[], None], whole: Path, claim: Claim, made: Iterable[Path], log: Log = no_log) -> None:
    """Calls `make` unless the file `whole` exists; processes that come at once wait for the one that makes it.

    Args:
        make: writes `whole` last.
        whole: exists once everything is complete.
        claim: on the work.
        made: what `make` writes, then the folders above; what of it was not there before is removed if `make` fails.
        log: receives whom this process waits for.
    """
    paths = list(made)
    new = [path for path in paths if not path.exists()]
    waiting = Waiting(log)
    while not whole.is_file():
        claim.path.parent.mkdir(parents=True, exist_ok=True)
        if not claim.take():
            waiting.wait(claim, paths[0])
            continue
        try:
            if not whole.is_file():  # another process may have finished it between the check and the claim
                make()
        except BaseException:
            remove_new(new[:1])  # still ours: another process may begin it as soon as the claim is gone
            claim.release()
            for folder in new[1:]:
                with suppress(OSError):  # not empty, or not made yet
                    folder.rmdir()
            raise
        claim.release()
