"""Which captions a pool keeps: filters and deduplication; what is dropped is counted."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from rcdeploy_runtime.errors import RcdeployError

from .patterns import WholeWordPatterns, passing

COUNTS = ("rows", "kept", "empty", "length", "script", "filtered", "duplicate", "not_drawn")
"""What the manifest records of each source: the first is the sum of the others."""
_NOT_LATIN = re.compile(
    "[\u0370-\u1dbf\u1f00-\u1fff\u2c80-\u2dff\u2e80-\u2fdf\u3005-\ua71f\ua800-\uab2f\uab66-\uf8ff"
    "\uf900-\ufaff\ufb07-\ufdff\ufe70-\ufefe\uff66-\uffdc\U00010000-\U0001cfff\U00020000-\U0003ffff]"
).search
"""letters of other scripts than Latin; not punctuation, symbols, emoji"""
ROWS_PER_BLOCK = 65536


@dataclass(frozen=True)
class PoolOptions:
    """How captions are read, filtered, deduplicated and sampled.

    Args:
        column: column of csv, jsonl and parquet files; the first of columns.COLUMNS by default.
        deduplicate: keep the first of equal captions.
        include: regular expressions of which one must be found, unless there is none (see WholeWordPatterns).
        exclude: regular expressions of which none may be found.
        min_length: characters, after normalisation.
        max_length: characters, after normalisation.
        script: "latin" drops captions with a letter of another script, "any" none.
        sample: exactly so many of the remaining captions, uniformly; all, if there are fewer. With `deduplicate` of
            the different captions: a frequent one is no likelier.
        seed: of the sample.
    """

    column: str | None = None
    deduplicate: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_length: int = 0
    max_length: int | None = None
    script: str = "any"
    sample: int | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a pool's manifest records them."""
        options: dict[str, Any] = {
            "column": self.column,
            "deduplicate": self.deduplicate,
            "include": [*self.include],
            "exclude": [*self.exclude],
            "min_length": self.min_length,
            "max_length": self.max_length,
            "script": self.script,
        }
        return options if self.sample is None else options | {"sample": self.sample, "seed": self.seed}


class Filters:
    """The filters of PoolOptions, applied to rows of captions."""

    def __init__(self, options: PoolOptions) -> None:
        """Raises RcdeployError for a wrong regular expression, lengths that no caption has, an unknown script."""
        self.min_length = options.min_length
        self.max_length = options.max_length
        self.script = options.script
        if self.max_length is not None and self.max_length < max(1, self.min_length):
            raise RcdeployError(f"no caption has {self.min_length} characters or more, and {self.max_length} or fewer")
        if self.script not in ("any", "latin"):
            raise RcdeployError(f"the script {self.script!r} is not known", fix="Allowed: any, latin.")
        self.include = WholeWordPatterns(options.include)
        self.exclude = WholeWordPatterns(options.exclude)

    def __call__(self, rows: list[str], counts: Counter[str]) -> list[str]:
        """Returns the captions that pass, normalised; the others are counted in `counts` by the first reason."""
        texts = [text for row in rows if (text := " ".join(row.split()))]
        counts.update(rows=len(rows), empty=len(rows) - len(texts))
        if self.min_length or self.max_length is not None:
            low = self.min_length
            high = self.max_length or np.inf
            texts = self._count("length", texts, [t for t in texts if low <= len(t) <= high], counts)
        if self.script == "latin":  # most captions are ASCII, for which Python needs no search
            texts = self._count("script", texts, [t for t in texts if t.isascii() or not _NOT_LATIN(t)], counts)
        return self._count("filtered", texts, passing(texts, self.include, self.exclude), counts)

    @staticmethod
    def _count(reason: str, before: list[str], after: list[str], counts: Counter[str]) -> list[str]:
        counts[reason] += len(before) - len(after)
        return after


def empty_pool_error(dropped: Mapping[str, int]) -> RcdeployError:
    """Names why no caption remains, by the counts of dropped rows."""
    descriptions = {
        "empty": "are empty",
        "length": "are too short or too long",
        "script": "are of another script",
        "filtered": "fail the filters",
    }
    reasons = ", ".join(f"{dropped[r]} rows {text}" for r, text in descriptions.items() if dropped[r])
    what = f"{reasons}, and there is no other" if reasons else "the sources have no rows"
    return RcdeployError(f"the prompt pool would be empty: {what}", fix="Check sources, column and filters.")


class Deduplicator:
    """The captions so far as sorted 64-bit hashes: 8 bytes each, in 64 parts, so that a copy is small.

    Python's own hash of a str (SipHash, keyed anew in each process) costs a tenth of blake2b; the key does not matter,
    as hashes never leave the process and the result does not depend on them.
    """

    def __init__(self) -> None:
        self._parts = [np.empty(0, np.uint64) for _ in range(64)]
        self._bounds = np.arange(64, dtype=np.uint64) << np.uint64(58)

    def __call__(self, texts: list[str]) -> list[str]:
        """The texts that did not come before, each once, in order."""
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


def select_rows(folder: Path, prompts: str, offsets: str, selected: np.ndarray) -> tuple[int, int]:
    """Rewrites both files of a pool with the selected rows alone, a few megabytes at a time.

    Returns their number and bytes.
    """
    count = 0
    size = 0
    with contextlib.ExitStack() as files:
        old_prompts, old_offsets = (files.enter_context((folder / name).open("rb")) for name in (prompts, offsets))
        new_prompts, new_offsets = (
            files.enter_context((folder / f"{name}.selected").open("wb")) for name in (prompts, offsets)
        )
        new_offsets.write(old_offsets.read(8))  # the first is 0
        for first in range(0, len(selected), ROWS_PER_BLOCK):
            mask = selected[first : first + ROWS_PER_BLOCK]
            ends = np.frombuffer(old_offsets.read(8 * len(mask)), "<u8")
            start = old_prompts.tell()
            lengths = np.diff(ends, prepend=np.uint64(start)).astype(np.int64)
            block = np.frombuffer(old_prompts.read(int(ends[-1]) - start), np.uint8)
            new_prompts.write(block[np.repeat(mask, lengths)].tobytes())  # masked: no object a row
            new_ends = size + np.cumsum(lengths[mask])
            new_offsets.write(new_ends.astype("<u8").tobytes())
            count += len(new_ends)
            size = int(new_ends[-1]) if len(new_ends) else size
    for name in (prompts, offsets):
        (folder / f"{name}.selected").replace(folder / name)
    return count, size
