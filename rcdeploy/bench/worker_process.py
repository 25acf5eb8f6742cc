"""The processes that bench starts, one for each model and backend, and the lines of JSON that they exchange."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from rcdeploy_runtime.errors import RcdeployError

SHUTDOWN_SECONDS = 5
LOG_LINES = 3
"""of a failed process's stderr in the message"""


@dataclass(frozen=True)
class WorkerProcess:
    """A process that loads one model on one backend (latency_worker.py); its first reply says how long that took."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[bytes]

    @classmethod
    @contextmanager
    def start(cls, name: str, task: dict[str, Any]) -> Iterator[WorkerProcess]:
        """name: for messages. task: as latency_worker reads it."""
        command = [sys.executable, "-W", "ignore", "-m", "rcdeploy.bench.latency_worker", json.dumps(task)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(task["threads"])}
        pipe = subprocess.PIPE
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment) as process,
        ):
            try:
                yield cls(name, process, errors)
            finally:
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=SHUTDOWN_SECONDS)  # it exits when its input ends, and cleans up
                process.kill()

    def seconds(self, component: str, latent_size: tuple[int, int]) -> float:
        """Time one call of a network, or of the whole pipeline ("image")."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has exited: reply() finds out why
            self.process.stdin.write(json.dumps({"component": component, "latent_size": latent_size}) + "\n")
            self.process.stdin.flush()
        return float(self.reply())

    def reply(self) -> Any:
        """Its next line. Raises RcdeployError if it failed or exited."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._exited()
        reply = json.loads(line)
        if isinstance(reply, dict) and "error" in reply:
            error = RcdeployError.from_json(reply["error"])
            raise RcdeployError(f"{self.name}: {error.message}", fix=error.fix, errors=error.errors)
        return reply

    def _exited(self) -> RcdeployError:
        code = self.process.wait()
        self.errors.seek(0)
        log = self.errors.read().decode(errors="replace").strip().splitlines()[-LOG_LINES:]
        reason = f"was killed (signal {-code})" if code < 0 else f"exited with code {code}"
        return RcdeployError(
            "\n".join([f"{self.name}: the measuring process {reason}", *log]),
            fix="If memory ran out: fewer models at once, or a smaller --size.",
        )
