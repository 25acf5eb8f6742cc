"""Trials side by side, each in a process of its own: a defect, or a kill, stops one and not the others."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rcdeploy_runtime.errors import RcdeployError

from ..storage.claims import Claim
from .trial import Trial
from .trial_process import EXIT_BUSY, FAILURE, LOG, environment, failure_of

POLL_SECONDS = 0.2
RETRY_SECONDS = 5.0
"""until a trial that another process runs is tried again"""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: every trial wrote a checkpoint, and the same command resumes."""


@dataclass
class Launcher:
    """Runs trials until none is left that could be run.

    Attributes:
        trials: in this order; those that are done are left out.
        command: of a trial's process. is_done: whether a trial is trained and scored. jobs: processes at once.
        on_end: called when a trial's process ends: the trial, its seconds, its failure or None.
        on_poll: called about five times a second.
        failures: by trial key, filled by run().
    """

    trials: Sequence[Trial]
    command: Callable[[Trial], list[str]]
    is_done: Callable[[Trial], bool]
    jobs: int = 1
    on_end: Callable[[Trial, float, RcdeployError | None], None] = lambda _trial, _seconds, _failure: None
    on_poll: Callable[[], None] = lambda: None
    failures: dict[str, RcdeployError] = field(default_factory=dict)
    _running: dict[int, tuple[Trial, subprocess.Popen[bytes], float]] = field(default_factory=dict)
    """by place, 0 to jobs - 1"""

    def run(self) -> dict[str, RcdeployError]:
        """Returns the failures by trial key. Raises Interrupted on Ctrl-C and SIGTERM."""
        waiting = [trial for trial in self.trials if not self.is_done(trial)]
        retry_at: dict[str, float] = {}
        with _recorded_signals() as signals:
            while waiting or self._running:
                if signals:
                    self._terminate_all(signals)
                    raise Interrupted
                for place in [p for p, (_, process, _) in self._running.items() if process.poll() is not None]:
                    if busy := self._finish(place):
                        waiting.append(busy)
                        retry_at[busy.key] = time.monotonic() + RETRY_SECONDS
                for place in range(self.jobs):
                    if place not in self._running and (trial := self._next(waiting, retry_at)):
                        self._start(trial, place)
                self.on_poll()
                time.sleep(POLL_SECONDS)
        return self.failures

    def _next(self, waiting: list[Trial], retry_at: dict[str, float]) -> Trial | None:
        """The first that no process runs; drops those that another sweep finished meanwhile."""
        for trial in list(waiting):
            if retry_at.get(trial.key, 0) > time.monotonic():
                continue
            if self.is_done(trial):
                waiting.remove(trial)
                continue
            trial.folder.parent.mkdir(parents=True, exist_ok=True)
            claim = Claim(trial.folder)
            if claim.take():  # a check only: the trial's own process takes it, and so holds it if we are killed
                claim.release()
                waiting.remove(trial)
                return trial
            retry_at[trial.key] = time.monotonic() + RETRY_SECONDS
        return None

    def _start(self, trial: Trial, place: int) -> None:
        trial.file(FAILURE).unlink(missing_ok=True)
        with trial.file(LOG).open("wb") as log:
            process = subprocess.Popen(
                self.command(trial),
                stdout=log,
                stderr=log,
                stdin=subprocess.PIPE,  # it closes when we die, by which the process knows (exit_with_parent)
                env=environment(place, self.jobs),
                start_new_session=True,  # Ctrl-C reaches us alone, and each of them once, from us
            )
        self._running[place] = trial, process, time.monotonic()

    def _finish(self, place: int) -> Trial | None:
        """The trial again when another process runs it."""
        trial, process, started = self._running.pop(place)
        if process.stdin:
            process.stdin.close()
        if process.returncode == EXIT_BUSY:
            return trial
        is_done = process.returncode == 0 and self.is_done(trial)
        failure = None if is_done else failure_of(trial, process.returncode)
        if failure:
            self.failures[trial.key] = failure
        self.on_end(trial, time.monotonic() - started, failure)
        return None

    def _terminate_all(self, signals: list[int]) -> None:
        """SIGTERM, after which a step is finished and saved; a second signal to us kills them."""
        processes = [process for _, process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        received = len(signals)
        while any(process.poll() is None for process in processes):
            if len(signals) > received:
                for process in processes:
                    process.kill()
            time.sleep(POLL_SECONDS)


@contextmanager
def _recorded_signals() -> Iterator[list[int]]:
    """Yields a list that grows by every Ctrl-C and SIGTERM."""
    received: list[int] = []
    previous = {
        s: signal.signal(s, lambda number, _frame: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
