"""What a language model was asked and said, on disk: asking is slow and costs money, so no answer is asked for twice.

A journal is JSON lines, {"key": digest of the request, "answer": text}, added to as answers come, in any order. A line
that a killed process left half is cut off. Only where each answer lies is kept in memory.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from ..storage.claims import Claim
from .language_model import CHARACTERS_PER_TOKEN, LanguageModel, Request

Progress = Callable[[int, int], None]
"""requests answered, requests in all"""
ATTEMPTS = 3
"""so often a request is asked whose answers are malformed"""


class Journal:
    """Opened by one process at a time (a claim beside the file says by which). Use it as a context."""

    def __init__(self, file: Path) -> None:
        """Raises RcdeployError when another process has it open, or a whole line of it is not one of a journal."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self._claim, self._lock = file, Claim(file), threading.Lock()
        if not self._claim.take():
            raise RcdeployError(
                f"another process is writing {file}", fix=f"Wait for it (or remove {self._claim.path})."
            )
        try:
            self._at = self._read()
            self._lines = file.open("r+b")
        except BaseException:
            self._claim.release()
            raise
        self._lines.seek(0, 2)

    def _read(self) -> dict[str, int]:
        """Where each answer's line begins. What follows the last line feed is cut off."""
        self.file.touch()
        found, at = {}, 0
        with self.file.open("r+b") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    lines.truncate(at)
                    break
                try:
                    found[str(json.loads(line)["key"])] = at
                except (ValueError, KeyError, TypeError):
                    raise RcdeployError(f"{self.file}, line {number}: no line of a journal", fix="Remove it.") from None
                at += len(line)
        return found

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def __getitem__(self, key: str) -> str:
        """Raises KeyError for what was not answered."""
        with self._lock:
            self._lines.seek(self._at[key])
            answer: str = json.loads(self._lines.readline())["answer"]
        return answer

    def add(self, key: str, answer: str) -> None:
        """Written through to the system at once. Raises RcdeployError when the disk is full."""
        line = json.dumps({"key": key, "answer": answer}).encode() + b"\n"
        with self._lock:
            at = self._lines.seek(0, 2)
            try:
                self._lines.write(line)
                self._lines.flush()
            except OSError as error:
                raise RcdeployError(f"cannot write {self.file}: {error.strerror}", fix="Free some room.") from error
            self._at[key] = at
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
    well_formed: Callable[[Request, str], bool],
    progress: Progress | None = None,
) -> int:
    """Asks what the journal does not hold, model.concurrency at a time; returns how many have no good answer.

    A malformed answer is asked for again, ATTEMPTS times in all; it is not kept, so the next run asks anew. Raises
    RcdeployError when the model answers no more; what was answered until then is in the journal.
    """
    missing = [request for request in requests if request.key(model.name) not in journal]
    done, failed, left, running = 0, 0, iter(missing), dict[Future[str | None], Request]()

    def good(request: Request) -> str | None:
        # warmer each time: what is greedy would say the same again
        warmer = (replace(request, temperature=request.temperature + 0.3 * i) for i in range(ATTEMPTS))
        return next((said for said in map(model.answer, warmer) if well_formed(request, said)), None)

    with ThreadPoolExecutor(model.concurrency) as threads:
        try:
            while True:
                while len(running) < 2 * model.concurrency and (request := next(left, None)):
                    running[threads.submit(good, request)] = request
                if not running:
                    return failed
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    request, answer = running.pop(future), future.result()
                    done += 1
                    if answer is None:
                        failed += 1
                    else:
                        journal.add(request.key(model.name), answer)
                    if progress:
                        progress(done, len(missing))
        except BaseException:
            model.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            for future, request in running.items():  # what was paid for is kept
                if future.done() and not future.cancelled() and future.exception() is None and future.result():
                    journal.add(request.key(model.name), str(future.result()))
            raise


@dataclass(frozen=True)
class Cost:
    """Of requests that the journal does not hold. Prices: per million tokens, in whatever currency they were given."""

    requests: int
    tokens_in: int
    tokens_out: int

    def price(self, price_in: float, price_out: float) -> float:
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def cost_of(model: str, requests: Sequence[Request], journal: Journal, tokens_out: int) -> Cost:
    """tokens_out: expected of each answer. Tokens of the requests are counted as characters / CHARACTERS_PER_TOKEN."""
    missing = [r for r in requests if r.key(model) not in journal]
    characters = sum(len(r.system) + len(r.user) for r in missing)
    return Cost(len(missing), characters // CHARACTERS_PER_TOKEN, tokens_out * len(missing))
