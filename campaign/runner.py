"""Runs attempts in worker processes, with a deadline and a bound on memory, and collects how they ended."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from .attempts import FAILED, Attempt, Outcome
from .families import FAMILIES
from .materials import empty
from .memory import MAX_EXTRA_BYTES, Stopwatch, rss

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.05
START = ["-m", "campaign.worker"]
"""arguments of Python that start a worker"""
START_SECONDS = 300
ATTEMPTS_PER_PROCESS = 400
"""then a fresh one: leaks of libraries should not add up"""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "export", "runtime")),
    "COLUMNS": "120",
}


class Worker:
    """One process at a time that runs attempts; a new one is started when it ended."""

    def __init__(self, materials: Path, scratch: Path) -> None:
        self._materials = materials
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._done = 0

    def run(self, attempt: Attempt) -> Outcome:
        if self._done >= ATTEMPTS_PER_PROCESS:
            self.close()
        process = self._process or self._start()
        started = time.monotonic()
        watch = Stopwatch()
        watch.look([process.pid])
        outcome = Outcome(attempt, FAILED)
        base = rss(process.pid)
        request = {"family": attempt.family, "number": attempt.number, "seed": attempt.seed}
        assert process.stdin
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        limit = FAMILIES[attempt.family].seconds
        while True:
            message = self._message(process, POLL_SECONDS)
            outcome.seconds = time.monotonic() - started
            if message is None:
                problem = self._problem(process, base, watch, limit)
                if problem:
                    outcome.text = problem
                    self.close()
                    return outcome
            elif "input" in message:
                outcome.input = message["input"]
            else:
                outcome.status, outcome.text = message["status"], message["text"]
                self._done += 1
                return outcome

    def close(self) -> None:
        """End the process, and those that it has started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        self._process = None
        self._pending = b""
        self._done = 0

    def _start(self) -> subprocess.Popen[bytes]:
        empty(self._scratch)
        process = subprocess.Popen(
            [sys.executable, *START, str(self._materials), str(self._scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        self._process = process
        if self._message(process, START_SECONDS) is None:
            self.close()
            raise RuntimeError(f"a worker process does not start: see {self._scratch / 'log'}")
        return process

    def _message(self, process: subprocess.Popen[bytes], seconds: float) -> Any:
        """The next line of the worker, or None when none comes in time."""
        assert process.stdout
        end = time.monotonic() + seconds
        while b"\n" not in self._pending:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(process.stdout.fileno(), 65_536) if ready else b""
            if not data:
                return None
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _problem(self, process: subprocess.Popen[bytes], base: int, watch: Stopwatch, limit: float) -> str:
        """Why the attempt cannot go on; "" while it may."""
        if process.poll() is not None:
            code = process.returncode
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return f"the process ended {how}{_last_line(self._scratch / 'log')}"
        pids = [process.pid, *_children(process.pid)]
        if watch.look(pids) > limit:
            return f"not done after {limit:g} s"
        for pid in pids:
            if rss(pid) > base + 1.2 * MAX_EXTRA_BYTES:
                return f"it took more than {1.2 * MAX_EXTRA_BYTES / 1e9:.1f} GB of memory and was ended"
        return ""


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return f": {lines[-1][:200]}" if lines else ""


def run_attempts(
    attempts: Sequence[Attempt], materials: Path, scratch: Path, jobs: int, report: Callable[[Outcome], None]
) -> list[Outcome]:
    """The outcomes, in the order of the attempts. report: receives each as it comes, on one thread at a time."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(attempts)):
        waiting.put(index)
    outcomes: dict[int, Outcome] = {}
    errors: list[BaseException] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        worker = Worker(materials, scratch / f"worker-{number}")
        try:
            while not errors:
                index = waiting.get_nowait()
                outcome = worker.run(attempts[index])
                with lock:
                    outcomes[index] = outcome
                    report(outcome)
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: end with the attempts that are under way
        errors.append(error)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return [outcomes[index] for index in sorted(outcomes)]
