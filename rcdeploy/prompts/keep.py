"""Which captions a pool keeps: filters, one of equal ones, and a uniform sample; what is dropped is counted."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from rcdeploy_runtime.errors import RcdeployError

from .readers import Patterns, whole_words

COUNTED = ("rows", "kept", "empty", "length", "script", "filtered", "duplicate", "not_drawn")
"""What is recorded of each source: the first is the sum of the others."""
_NOT_LATIN = re.compile(
    "[\u0370-\u1dbf\u1f00-\u1fff\u2c80-\u2dff\u2e80-\u2fdf\u3005-\ua71f\ua800-\uab2f\uab66-\uf8ff"
    "\uf900-\ufaff\ufb07-\ufdff\ufe70-\ufefe\uff66-\uffdc\U00010000-\U0001cfff\U00020000-\U0003ffff]"
).search
"""letters of other scripts than Latin; not punctuation, symbols, emoji"""
SELECT_ROWS = 65536


@dataclass(frozen=True)
class Filters:
    """wanted, unwanted: some of the first (if there are any) and none of the second is found. lengths: characters."""

    wanted: Patterns
    unwanted: Patterns
    min_length: int = 0
    max_length: int | None = None
    script: str = "any"

    @classmethod
    def make(
        cls, include: Sequence[str], exclude: Sequence[str], min_length: int, max_length: int | None, script: str
    ) -> Filters:
        """Raises RcdeployError for a pattern that is none, lengths that no caption has, an unknown script."""
        if max_length is not None and max_length < max(1, min_length):
            raise RcdeployError(f"no caption has {min_length} characters or more, and {max_length} or fewer")
        if script not in ("any", "latin"):
            raise RcdeployError(f"the script {script!r} is not known", fix="Allowed: any, latin.")
        return cls(whole_words(include), whole_words(exclude), min_length, max_length, script)

    def __call__(self, rows: list[str], tally: Counter[str]) -> list[str]:
        """The rows that pass, normalised; those that do not are counted in `tally` by the first reason."""
        texts = [text for row in rows if (text := " ".join(row.split()))]
        tally.update(rows=len(rows), empty=len(rows) - len(texts))
        if self.min_length or self.max_length is not None:
            low, high = self.min_length, self.max_length or np.inf
            texts = self._count("length", texts, [t for t in texts if low <= len(t) <= high], tally)
        if self.script == "latin":  # most captions are ASCII, which Python knows without a look
            texts = self._count("script", texts, [t for t in texts if t.isascii() or not _NOT_LATIN(t)], tally)
        passed = [text for text in texts if any(p.search(text) for p in self.wanted)] if self.wanted else texts
        if self.unwanted:
            passed = [text for text in passed if not any(p.search(text) for p in self.unwanted)]
        return self._count("filtered", texts, passed, tally)

    @staticmethod
    def _count(why: str, before: list[str], after: list[str], tally: Counter[str]) -> list[str]:
        tally[why] += len(before) - len(after)
        return after


def nothing_left(dropped: dict[str, int]) -> RcdeployError:
    """Says why no caption is left, by the counts of what was dropped."""
    said = {"empty": "are empty", "length": "are too short or too long", "script": "are of another script",
            "filtered": "fail the filters"}  # fmt: skip
    rows = ", ".join(f"{dropped[why]} rows {what}" for why, what in said.items() if dropped[why])
    what = f"{rows}, no other is there" if rows else "no row is there"
    return RcdeployError(f"the prompt pool would be empty: {what}", fix="Check sources, column and filters.")


class Seen:
    """The captions seen so far, as sorted 64-bit hashes: 8 bytes each, in 64 parts, so that a copy is small.

    Python's own hash of a str (SipHash, keyed anew in each process) costs a tenth of blake2b; the key does not matter,
    as hashes never leave the process and what is kept does not depend on them.
    """

    def __init__(self) -> None:
        self._parts = [np.empty(0, np.uint64) for _ in range(64)]
        self._bounds = np.arange(64, dtype=np.uint64) << np.uint64(58)

    def new(self, texts: list[str]) -> list[str]:
        """Those of `texts` that were not seen before, each once, in order; they count as seen from now on."""
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)
        values, firsts = np.unique(hashes, return_index=True)
        is_new = np.zeros(len(texts), bool)
        cuts = [*np.searchsorted(values, self._bounds).tolist(), len(values)]
        for i, known in enumerate(self._parts):
            part = values[cuts[i] : cuts[i + 1]]
            at = np.searchsorted(known, part)
            unknown = np.searchsorted(known, part, side="right") == at
            self._parts[i] = np.insert(known, at[unknown], part[unknown])
            is_new[firsts[cuts[i] : cuts[i + 1]][unknown]] = True
        return list(compress(texts, is_new.tolist()))


class Sample:
    """Exactly `size` of all captions that come by (all, if fewer come), each set of that size as likely as any other.

    Every caption gets a random key; the `size` smallest win. Who cannot be among them is let go at once, so of n
    captions about size x (1 + ln(n / size)) are candidates, and only their keys are kept.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self._rng, self._bound = size, np.random.Generator(np.random.Philox(seed)), 1.0
        self._keys: list[np.ndarray] = []
        self._smallest, self._waiting = np.empty(0), list[np.ndarray]()

    def candidates(self, texts: list[str]) -> list[str]:
        keys = self._rng.random(len(texts))
        near = keys < self._bound
        self._keys.append(keys[near])
        self._waiting.append(keys[near])
        if sum(map(len, self._waiting)) > self.size // 4 + 65536:  # not every time: it costs a pass over `size` keys
            self._smallest = np.concatenate([self._smallest, *self._waiting])
            self._waiting = []
            if len(self._smallest) > self.size:
                self._smallest = np.partition(self._smallest, self.size - 1)[: self.size]
                self._bound = float(self._smallest[-1])
        return list(compress(texts, near.tolist()))

    def chosen(self) -> np.ndarray:
        """For every candidate, in order: is it in the sample? No candidate may come after this."""
        keys = np.concatenate([np.empty(0), *self._keys])
        self._keys, self._smallest, self._waiting = [], np.empty(0), []  # 8 bytes a candidate and 8 of the sample
        if len(keys) <= self.size:
            return np.ones(len(keys), bool)
        last = np.partition(keys, self.size - 1)[self.size - 1]
        chosen = keys < last
        chosen[np.flatnonzero(keys == last)[: self.size - int(chosen.sum())]] = True  # the first of equal keys
        return chosen


def select(folder: Path, prompts: str, offsets: str, chosen: np.ndarray) -> tuple[int, int]:
    """Rewrites both files of a pool with the chosen rows alone, a few megabytes at a time. Returns their number and
    bytes.
    """
    count = size = 0
    with contextlib.ExitStack() as files:
        old_prompts, old_offsets = (files.enter_context((folder / name).open("rb")) for name in (prompts, offsets))
        new_prompts, new_offsets = (
            files.enter_context((folder / f"{name}.chosen").open("wb")) for name in (prompts, offsets)
        )
        new_offsets.write(old_offsets.read(8))  # the first is 0
        for first in range(0, len(chosen), SELECT_ROWS):
            taken = chosen[first : first + SELECT_ROWS]
            ends = np.frombuffer(old_offsets.read(8 * len(taken)), "<u8")
            start = old_prompts.tell()
            lengths = np.diff(ends, prepend=np.uint64(start)).astype(np.int64)
            block = np.frombuffer(old_prompts.read(int(ends[-1]) - start), np.uint8)
            new_prompts.write(block[np.repeat(taken, lengths)].tobytes())  # masked: no object a row
            new_ends = size + np.cumsum(lengths[taken])
            new_offsets.write(new_ends.astype("<u8").tobytes())
            count, size = count + len(new_ends), int(new_ends[-1]) if len(new_ends) else size
    for name in (prompts, offsets):
        (folder / f"{name}.chosen").replace(folder / name)
    return count, size
