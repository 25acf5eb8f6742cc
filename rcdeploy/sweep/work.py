"""Cells side by side, each in a process of its own: a defect, or a kill, stops one and not the others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..machine import usable_cores
from ..storage.claims import Claim
from .plan import Cell

BUSY = 75
"""exit code of a cell's process when another process is at that cell (EX_TEMPFAIL)"""
POLL_SECONDS, LOOK_AGAIN_SECONDS = 0.2, 5.0
PANEL, STRIPPED = "rcdeploy", " │╭╮╰╯─\t"
"""what a panel on the terminal has at its head, and around its words"""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: every cell wrote its checkpoint, and the same command goes on."""


@dataclass
class Work:
    """start: the command of a cell's process. done: is it finished. tell: called about five times a second."""

    cells: Sequence[Cell]
    start: Callable[[Cell], list[str]]
    done: Callable[[Cell], bool]
    jobs: int = 1
    finished: Callable[[Cell, float, str | None], None] = lambda _cell, _seconds, _failure: None
    """called when a cell's process ends: how long it ran, and its message when it failed"""
    tell: Callable[[], None] = lambda: None
    failures: dict[str, str] = field(default_factory=dict)
    """key -> message"""
    _running: dict[int, tuple[Cell, subprocess.Popen[bytes], float]] = field(default_factory=dict)
    """by place, 0 to jobs - 1"""

    def run(self) -> dict[str, str]:
        """Until no cell is left that could be made. Returns the failures. Raises Interrupted."""
        waiting = [cell for cell in self.cells if not self.done(cell)]
        again: dict[str, float] = {}
        with _told_to_stop() as stop:
            while waiting or self._running:
                if stop:
                    self._end_all(stop)
                    raise Interrupted
                for place in [p for p, (_, process, _) in self._running.items() if process.poll() is not None]:
                    if left := self._ended(place):
                        waiting.append(left)
                        again[left.key] = time.monotonic() + LOOK_AGAIN_SECONDS
                for place in range(self.jobs):
                    if place not in self._running and (cell := self._next(waiting, again)):
                        self._start(cell, place)
                self.tell()
                time.sleep(POLL_SECONDS)
        return self.failures

    def _next(self, waiting: list[Cell], again: dict[str, float]) -> Cell | None:
        """The first that nobody is at. Those that another sweep finished meanwhile are dropped."""
        for cell in list(waiting):
            if again.get(cell.key, 0) > time.monotonic():
                continue
            if self.done(cell):
                waiting.remove(cell)
                continue
            cell.folder.parent.mkdir(parents=True, exist_ok=True)
            claim = Claim(cell.folder)
            if claim.take():  # only a look: the cell's own process takes it for good, and so holds it if we are killed
                claim.release()
                waiting.remove(cell)
                return cell
            again[cell.key] = time.monotonic() + LOOK_AGAIN_SECONDS
        return None

    def _start(self, cell: Cell, place: int) -> None:
        with _log(cell).open("wb") as log:
            process = subprocess.Popen(
                self.start(cell),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment(place, self.jobs),
                start_new_session=True,  # Ctrl-C reaches us alone, and each of them once from us
            )
        self._running[place] = cell, process, time.monotonic()

    def _ended(self, place: int) -> Cell | None:
        """The cell again, when another process was at it."""
        cell, process, started = self._running.pop(place)
        if process.returncode == BUSY:
            return cell
        failure = None if process.returncode == 0 and self.done(cell) else _message(cell, process.returncode)
        if failure:
            self.failures[cell.key] = failure
        self.finished(cell, time.monotonic() - started, failure)
        return None

    def _end_all(self, stop: list[int]) -> None:
        """Once politely: the step is finished and saved. A second signal to us stops at once, and so does ours."""
        processes = [process for _, process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        asked = len(stop)
        while any(process.poll() is None for process in processes):
            if len(stop) > asked:
                for process in processes:
                    process.kill()
            time.sleep(POLL_SECONDS)


def environment(place: int, jobs: int) -> dict[str, str]:
    """Of the process in place 0 to jobs - 1: an even share of the cores, and one of CUDA_VISIBLE_DEVICES' GPUs."""
    found = {**os.environ, "COLUMNS": "400"}  # messages in one line
    found.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if gpus:
        found["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return found


def _log(cell: Cell) -> Path:
    return cell.folder.with_name(cell.folder.name + ".log")


def _message(cell: Cell, code: int) -> str:
    """The last lines that a failed process wrote, without the panel around them."""
    said = _log(cell).read_text(encoding="utf-8", errors="replace")
    panel = said.rpartition(f"╭─ {PANEL}")[2]  # all of it, when there is no panel
    lines = [line for text in panel.splitlines() if (line := text.strip(STRIPPED))]
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return "\n".join(lines[-12:]) or f"{ended}, without a word"


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """Yields a list that grows by every Ctrl-C and SIGTERM."""
    signals: list[int] = []
    before = {
        s: signal.signal(s, lambda number, _frame: signals.append(number)) for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
