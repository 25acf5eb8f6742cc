"""One interface for progress: long work reports stages, the caller decides what a person sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

Log = Callable[[str], None]
"""Receives remarks for a person, a sentence each."""


class Progress(Protocol):
    """Called as `progress(stage, completed, total, metrics)`; metrics are e.g. the latest losses."""

    def __call__(
        self, stage: str, completed: int, total: int, metrics: Mapping[str, float] | None = None, /
    ) -> None: ...


def no_progress(stage: str, completed: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    """Reports nothing."""


def no_log(text: str) -> None:
    """Discards a remark."""
