"""The process of one candidate, and the lines of JSON that it is sent and answers."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import RcdeployError
from ..session_options import SessionOptions

POLL_SECONDS = 0.1
LOG_LINES = 2
"""of a failed process's stderr in the message"""
SIGKILL = 9
"""which the system sends when memory runs out"""


class TookTooLong(Exception):
    """No reply came in time."""


class CandidateProcess:
    """A process that has loaded a package with one set of options. Close it in any case: it is killed."""

    def __init__(self, folder: Path, options: SessionOptions, tick: Callable[[], None]) -> None:
        """tick: called about ten times a second while a reply is awaited."""
        self._tick = tick
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            command({"folder": str(folder), "options": asdict(options)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the process that measures; it ends this one
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def loaded(self, timeout: float) -> None:
        """Wait until the package is loaded. Raises as `draw`."""
        self._reply(timeout)

    def draw(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """An image and its seconds, as worker.py replies.

        Raises RcdeployError when the process failed or died, TookTooLong when it does not reply in `timeout` seconds.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: _reply finds out how
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._reply(timeout)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a request that was never read
                if stream is not None:
                    stream.close()
        self._errors.close()

    def _read(self) -> None:
        """A thread of its own, since pipes cannot be read with a timeout everywhere. "" is the end."""
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # closed meanwhile
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _reply(self, timeout: float) -> dict[str, Any]:
        end = time.perf_counter() + timeout
        while True:
            self._tick()
            try:
                line = self._lines.get(timeout=POLL_SECONDS)
                break
            except queue.Empty:
                if time.perf_counter() > end:
                    raise TookTooLong from None
        try:
            reply = json.loads(line)
        except ValueError:
            raise self._died() from None
        if "error" in reply:
            raise RcdeployError.from_json(reply["error"])
        return dict(reply)

    def _died(self) -> RcdeployError:
        code = self._process.wait()
        self._errors.seek(0)
        log = self._errors.read().decode(errors="replace").strip().splitlines()[-LOG_LINES:]
        if code == -SIGKILL:
            return RcdeployError("its process was killed: memory has probably run out")
        how = f"died of signal {-code}" if code < 0 else f"ended with code {code}"
        return RcdeployError(": ".join([f"its process {how}", *log]))


def command(task: dict[str, Any]) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "rcdeploy_runtime.tuning.worker", json.dumps(task)]
