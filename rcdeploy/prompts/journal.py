"""Answers of a language model on disk: they are slow and cost money, so that no request is sent twice.

A journal is JSON lines, {"key": digest of the request, "answer": text}, appended as answers come, in any order. A line
that a killed process left half is cut off. Only the position of each answer is kept in memory.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from ..progress import Progress, no_progress
from ..storage.claims import Claim
from .language_model import CHARACTERS_PER_TOKEN, LanguageModel, Request
from .readers import check_regular_file

MAX_ATTEMPTS = 3
"""requests sent for one usable answer"""


class Journal:
    """Open in one process at a time (a claim beside the file names it). Use it as a context."""

    def __init__(self, file: Path) -> None:
        """Raises RcdeployError when another process has it open, or a complete line of it is not a journal's."""
        check_regular_file(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._claim = Claim(file)
        self._lock = threading.Lock()
        if not self._claim.take():
            raise RcdeployError(
                f"another process is writing {file}", fix=f"Wait for it (or remove {self._claim.path})."
            )
        try:
            self._positions = self._read()
            self._lines = file.open("r+b")
        except BaseException:
            self._claim.release()
            raise
        self._lines.seek(0, 2)

    def _read(self) -> dict[str, int]:
        """Position of each answer's line by key. What follows the last line feed is cut off."""
        self.file.touch()
        positions: dict[str, int] = {}
        position = 0
        with self.file.open("r+b") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    lines.truncate(position)
                    break
                try:
                    positions[str(json.loads(line)["key"])] = position
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise RcdeployError(f"{self.file}, line {number}: no line of a journal", fix="Remove it.") from None
                position += len(line)
        return positions

    def __contains__(self, key: str) -> bool:
        return key in self._positions

    def __getitem__(self, key: str) -> str:
        """Raises KeyError for a request without an answer."""
        with self._lock:
            self._lines.seek(self._positions[key])
            answer: str = json.loads(self._lines.readline())["answer"]
        return answer

    def add(self, key: str, answer: str) -> None:
        """Written through to the system at once. Raises RcdeployError when the disk is full."""
        line = json.dumps({"key": key, "answer": answer}).encode() + b"\n"
        with self._lock:
            position = self._lines.seek(0, 2)
            try:
                self._lines.write(line)
                self._lines.flush()
            except OSError as error:
                raise RcdeployError(f"cannot write {self.file}: {error.strerror}", fix="Free some room.") from error
            self._positions[key] = position
            self._claim.touch()

    def close(self) -> None:
        self._lines.close()
        self._claim.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(
    model: LanguageModel,
    requests: Iterable[Request],
    journal: Journal,
    is_usable: Callable[[Request, str], bool],
    *,
    stage: str = "language model",
    progress: Progress = no_progress,
) -> int:
    """Sends the requests that the journal has no answer for, model.concurrency at a time.

    An answer that is not usable is requested again, MAX_ATTEMPTS times in all; it is not journalled, so that the next
    run requests it anew.

    Args:
        model: answers them.
        requests: all that are needed.
        journal: receives usable answers.
        is_usable: (request, answer) -> whether the answer will do.
        stage: of the progress.
        progress: receives (stage, requests answered, requests sent in all).

    Returns:
        The number of requests without a usable answer.

    Raises:
        RcdeployError: the model does not answer any more; earlier answers are in the journal.
    """
    missing = [request for request in requests if request.key(model.name) not in journal]
    remaining = iter(missing)
    running: dict[Future[str | None], Request] = {}
    completed = 0
    failed = 0

    def usable_answer(request: Request) -> str | None:
        # warmer each time: a greedy model would repeat itself
        warmer = (replace(request, temperature=request.temperature + 0.3 * i) for i in range(MAX_ATTEMPTS))
        return next((answer for answer in map(model.answer, warmer) if is_usable(request, answer)), None)

    with ThreadPoolExecutor(model.concurrency) as threads:
        try:
            while True:
                while len(running) < 2 * model.concurrency and (request := next(remaining, None)):
                    running[threads.submit(usable_answer, request)] = request
                if not running:
                    return failed
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    request = running.pop(future)
                    answer = future.result()
                    completed += 1
                    if answer is None:
                        failed += 1
                    else:
                        journal.add(request.key(model.name), answer)
                    progress(stage, completed, len(missing))
        except BaseException:
            model.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            for future, request in running.items():  # answers that were paid for
                if future.done() and not future.cancelled() and future.exception() is None and future.result():
                    journal.add(request.key(model.name), str(future.result()))
            raise


@dataclass(frozen=True)
class Cost:
    """Requests that the journal has no answer for, and their tokens."""

    requests: int
    tokens_in: int
    tokens_out: int

    def price(self, price_in: float, price_out: float) -> float:
        """price_in, price_out: per million tokens, in the currency of the result."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def cost_of(model: str, requests: Sequence[Request], journal: Journal, tokens_out: int) -> Cost:
    """tokens_out: expected per answer. Tokens of the requests are estimated as characters / CHARACTERS_PER_TOKEN."""
    missing = [r for r in requests if r.key(model) not in journal]
    characters = sum(len(r.system) + len(r.user) for r in missing)
    return Cost(len(missing), characters // CHARACTERS_PER_TOKEN, tokens_out * len(missing))
