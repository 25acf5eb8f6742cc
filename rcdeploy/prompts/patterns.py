"""Regular expressions over captions: whole words, case ignored, and no search that never ends."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import compress
from typing import TypeVar

from rcdeploy_runtime.errors import RcdeployError

T = TypeVar("T")
MAX_SECONDS_PER_CAPTION = 2.0
"""processor time: an ordinary expression takes microseconds, one that backtracks without bound takes years"""


class WholeWordPatterns:
    """Regular expressions (Python's re) of which any may be found anywhere in a text.

    They ignore case and match whole words only: no letter, digit or underscore may stand right before or after the
    match. "cat" finds "A Cat." but not "category"; write "cat\\w*" for both. False when there is no expression.
    """

    def __init__(self, expressions: Sequence[str]) -> None:
        """Raises RcdeployError for what is not a regular expression."""
        self.expressions = tuple(expressions)
        self._patterns = [_compile(expression) for expression in expressions]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def matches(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether any expression is found in it. Raises RcdeployError as search_each does."""
        return search_each(
            lambda text: any(pattern.search(text) for pattern in self._patterns), texts, self.expressions
        )


def search_each(search: Callable[[str], T], texts: Sequence[str], expressions: Sequence[str]) -> list[T]:
    """search(text) of every text, where `search` matches the regular `expressions` with it.

    Raises RcdeployError for a text that takes longer than MAX_SECONDS_PER_CAPTION. That is noticed where the system
    has timers and in the main thread; elsewhere such a search goes on.
    """
    results: list[T] = []
    try:
        with _watchdog(results, len(texts)):
            for text in texts:
                results.append(search(text))
    except _TooSlow:
        (first, *others) = expressions
        which = f"one of {len(expressions)} regular expressions" if others else f"the regular expression {first!r}"
        raise RcdeployError(
            f"{which} takes more than {MAX_SECONDS_PER_CAPTION:g} s for the caption {texts[len(results)][:80]!r}",
            fix="Write it without a repetition inside a repetition, as in (a+)+.",
        ) from None
    return results


def passing(texts: list[str], include: WholeWordPatterns, exclude: WholeWordPatterns) -> list[str]:
    """The texts in which `include` is found (all, if it is empty) and `exclude` is not, in order."""
    included = list(compress(texts, include.matches(texts))) if include else texts
    if not exclude:
        return included
    return [text for text, excluded in zip(included, exclude.matches(included), strict=True) if not excluded]


def _compile(expression: str) -> re.Pattern[str]:
    try:
        expression.encode()  # a manifest records it
        re.compile(expression)  # by itself first: "a)|(b" must not pass because of our brackets
        return re.compile(rf"(?<!\w)(?:{expression})(?!\w)", re.IGNORECASE)
    except (re.error, RecursionError, OverflowError, UnicodeEncodeError) as error:
        raise RcdeployError(f"{expression!r} is no regular expression: {error}") from None


class _TooSlow(Exception):
    pass


@contextmanager
def _watchdog(results: Sized, count: int) -> Iterator[None]:
    """Raises _TooSlow in the block when `results`, fewer than `count`, did not grow for MAX_SECONDS_PER_CAPTION.

    It may take twice as long.
    Python's re holds the interpreter while it searches, but it does look for signals. The timer counts this process's
    own processor time, so that a busy machine or a pause changes nothing.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -1

    def tick(_signal: int, _frame: object) -> None:
        nonlocal last
        if len(results) == last < count:
            raise _TooSlow
        last = len(results)

    previous = signal.signal(signal.SIGVTALRM, tick)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS_PER_CAPTION, MAX_SECONDS_PER_CAPTION)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)  # drops one on its way, which by default would end the process
        signal.signal(signal.SIGVTALRM, previous)
