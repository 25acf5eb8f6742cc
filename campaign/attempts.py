"""What an attempt is: a number in a family, a place of its own, and an outcome in words."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DONE, REFUSED, FAILED = "done", "refused", "failed"


class Failed(Exception):
    """An attempt that should have ended otherwise; the message says what happened."""


@dataclass(frozen=True)
class Attempt:
    """Attempt `number` of a family; with the seed it determines the input."""

    family: str
    number: int
    seed: int = 0

    def random(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.family}/{self.number}")

    def __str__(self) -> str:
        return f"{self.family}:{self.number}"


@dataclass
class Outcome:
    """How an attempt ended.

    status: done (the input was accepted and gave the right result), refused (an RcdeployError) or failed. input: what
    was tried. text: of a refusal its message, of a failure what happened.
    """

    attempt: Attempt
    status: str
    input: str = ""
    text: str = ""
    seconds: float = 0.0


@dataclass
class Place:
    """Where an attempt works.

    materials: what attempts start from; shared, never written to. folder: empty, the current folder. describe: receives
    in words what is tried, before it is tried, so that a hang has a name too.
    """

    materials: Path
    folder: Path
    describe: Callable[[str], None]
    remembered: dict[str, Any] = field(default_factory=dict)
    """what a family computes once in a process, such as the result without a fault"""

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.remembered:
            self.remembered[key] = make()
        return self.remembered[key]


@dataclass(frozen=True)
class Family:
    """Attempts of one kind.

    run: builds the input and runs the code under test in `place.folder`. It returns when the result is right, lets
    RcdeployError through, and raises Failed otherwise; any other exception is a failure too. share: of 1,000 attempts.
    seconds: the deadline. internet: whether the attempt may open sockets (to a server of its own).
    """

    title: str
    run: Callable[[Place, random.Random], None]
    share: int
    seconds: float = 30
    internet: bool = False
    refusable: bool = True
    """whether an RcdeployError is a good end"""
