"""The prompt pool: the texts C that random conditioning samples from, up to tens of millions, on disk.

    prompts.bin    the prompts in UTF-8, one after another, nothing between them
    offsets.bin    count + 1 little-endian uint64: prompt i is the bytes offsets[i] to offsets[i + 1] of prompts.bin
    manifest.json  kind "prompt_pool"

Opening checks three file sizes and 16 bytes, sampling a prompt is two reads of a few bytes, and nothing stays in
memory: time and memory do not grow with the pool. Files are read with pread and not mapped: touched pages of a map
count as resident memory, and 5 million prompts sampled at random made a process 400 MB bigger that way.
"""

from __future__ import annotations

import hashlib
import operator
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rcdeploy_runtime.digests import DigestCache
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

PROMPTS, OFFSETS = POOL_FILES = "prompts.bin", "offsets.bin"
_unpack_pair = struct.Struct("<QQ").unpack
_ITERATION_ROWS = 8192

ReadAt = Callable[[int, int], bytes]
"""(bytes to read, where to begin) -> the bytes; fewer only at the end of the file."""


@dataclass(frozen=True)
class SourceCounts:
    """Rows of one source of a pool. Pools of earlier versions count fewer reasons.

    Args:
        name: the file or folder.
        files: number of caption files in it.
        rows: rows read; the sum of the counts below.
        kept: prompts in the pool.
        empty: empty rows.
        length: captions that are too short or too long.
        script: captions with letters of another script.
        filtered: captions that fail the regular expressions.
        duplicate: captions equal to an earlier one; with a sample, to an earlier one of the sample.
        not_drawn: captions that are not in the sample.
    """

    name: str
    files: int
    rows: int
    kept: int
    empty: int = 0
    length: int = 0
    script: int = 0
    filtered: int = 0
    duplicate: int = 0
    not_drawn: int = 0


@dataclass(frozen=True)
class PoolFacts:
    """Facts in the manifest of a prompt pool.

    Args:
        count: number of prompts.
        bytes: their length in UTF-8.
        sources: the sources in order.
        dropped: dropped rows of all sources, by reason.
        options: PoolOptions.to_json().
    """

    count: int
    bytes: int
    sources: tuple[SourceCounts, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


class PromptPool:
    """A folder of prompts, read where it lies. Threads may share one; a fork or a pickle (re-opened by path) may too.

    A pool that is replaced on disk while open goes on reading the old files.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use PromptPool.open, which checks the files."""
        self.folder = folder
        self.manifest = manifest
        self.facts = manifest.facts_as(PoolFacts)
        self._count = self.facts.count
        self._bytes = self.facts.bytes
        prompts, self._read_prompts = _reader(folder / PROMPTS)
        offsets, self._read_offsets = _reader(folder / OFFSETS)
        self._closers = [weakref.finalize(self, os.close, descriptor) for descriptor in (prompts, offsets)]

    @classmethod
    def open(cls, folder: Path) -> PromptPool:
        """Opens in O(1): the manifest and the sizes of both files are checked, not their digests.

        Raises RcdeployError when the folder is no prompt pool, or a file of it is missing or not as long as recorded.
        """
        folder = Path(folder).absolute()
        manifest = Manifest.read(folder, "prompt_pool")
        facts = manifest.facts_as(PoolFacts)
        if facts.count < 0 or facts.bytes < 0:
            raise _damaged(folder, f"its manifest has {facts.count} prompts of {facts.bytes} bytes")
        if not {PROMPTS, OFFSETS} <= set(manifest.files):
            raise _damaged(folder, f"its manifest does not list {PROMPTS} and {OFFSETS}")
        for name, expected in ((PROMPTS, facts.bytes), (OFFSETS, 8 * (facts.count + 1))):
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if size != expected:
                state = "is missing" if size is None else f"has {size:,} bytes instead of {expected:,}"
                raise _damaged(folder, f"{name} {state}")
        pool = cls(folder, manifest)
        first, last = _unpack_pair(pool._read_offsets(8, 0) + pool._read_offsets(8, 8 * facts.count))
        if (first, last) != (0, facts.bytes):
            pool.close()
            raise _damaged(folder, f"{OFFSETS} does not span {PROMPTS}")
        return pool

    @property
    def digest(self) -> str:
        """64 hex digits that identify the prompts and their order, wherever the pool lies. Taken from the manifest."""
        return pool_digest(self.manifest.files)

    def changed_files(self, digests: DigestCache) -> list[str]:
        """Names of the files whose contents are not those that the manifest records. Reads them unless remembered."""
        recorded = self.manifest.files
        return [name for name in POOL_FILES if digests.sha256(self.folder / name) != recorded[name]["sha256"]]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        """Prompt `index`. Raises IndexError outside of 0 to len - 1 (negative ones too), RcdeployError on damage."""
        if type(index) is not int:
            index = operator.index(index)  # a numpy int32 would overflow in 8 * index
        if not 0 <= index < self._count:
            raise IndexError(f"prompt {index} of a pool of {self._count}")
        start, end = _unpack_pair(self._read_offsets(16, 8 * index))
        text = self._read_prompts(end - start, start) if start <= end <= self._bytes else b""
        return self._decode(index, text, end - start)

    def _decode(self, index: int, text: bytes, size: int) -> str:
        """Raises RcdeployError when the bytes of prompt `index` are not as many as its offsets say, or not UTF-8."""
        try:
            if len(text) == size:
                return text.decode()
        except UnicodeDecodeError:
            pass
        raise _damaged(self.folder, f"the offsets or the bytes of prompt {index} are wrong")

    def take(self, indices: Iterable[int]) -> list[str]:
        """The prompts at `indices` (a list, an array, ...), in that order. Raises as pool[i] does."""
        listed = indices.tolist() if isinstance(indices, np.ndarray) else indices
        return [self[i] for i in listed]

    def draw(self, rng: np.random.Generator, n: int) -> list[str]:
        """n prompts, each uniform over the whole pool and independent of the others (with replacement).

        They depend on the state of `rng` and on the pool only. Raises ValueError when n is negative.
        """
        return self.take(rng.integers(0, self._count, size=n))

    def __iter__(self) -> Iterator[str]:
        """All prompts in order, a few thousand held at a time."""
        for first in range(0, self._count, _ITERATION_ROWS):
            rows = min(_ITERATION_ROWS, self._count - first)
            offsets = np.frombuffer(self._read_offsets(8 * (rows + 1), 8 * first), "<u8").tolist()
            start, size = offsets[0], offsets[-1] - offsets[0]
            block = self._read_prompts(size, start) if 0 <= size <= self._bytes else b""
            for i, (a, b) in enumerate(pairwise(offsets), first):
                yield self._decode(i, block[a - start : b - start], b - a)

    def close(self) -> None:
        """Closes the files; reading then raises ValueError. Closing twice does nothing."""
        # not merely closed: the descriptor's number may soon belong to another file
        self._read_prompts = self._read_offsets = _closed
        for closer in self._closers:
            closer()

    def __enter__(self) -> PromptPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.digest)


def pool_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """PromptPool.digest from the entries of a manifest's files."""
    recorded = "".join(str(files[name].get("sha256")) for name in POOL_FILES)
    return hashlib.sha256(recorded.encode()).hexdigest()


def open_whole(folder: Path, digests: DigestCache | None = None, fix: str | None = None) -> PromptPool:
    """Opens a pool after comparing its files with their digests. Raises RcdeployError that names a changed file.

    Args:
        folder: of the pool.
        digests: those that are known, instead of the remembered ones.
        fix: what to do about a changed file, instead of building the pool again.
    """
    pool = PromptPool.open(folder)
    digests = digests or DigestCache()
    changed = pool.changed_files(digests)
    digests.save()
    if changed:
        pool.close()
        verb = "has" if len(changed) == 1 else "have"
        raise _damaged(pool.folder, f"{' and '.join(changed)} {verb} changed since the pool was built", fix)
    return pool


def _reopen(folder: Path, digest: str) -> PromptPool:
    """Raises RcdeployError when another pool stands there by now: two workers must not draw from different pools."""
    pool = PromptPool.open(folder)
    if pool.digest != digest:
        pool.close()
        raise RcdeployError(f"the prompt pool {folder} was replaced by another one meanwhile", fix="Start again.")
    return pool


def _reader(path: Path) -> tuple[int, ReadAt]:
    """(descriptor, a function that reads at a place); the function may be called from several threads at once."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    if hasattr(os, "pread"):
        return descriptor, partial(os.pread, descriptor)
    return descriptor, partial(_seek_and_read, descriptor, threading.Lock())  # Windows


def _seek_and_read(descriptor: int, lock: threading.Lock, size: int, at: int) -> bytes:
    with lock:
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.read(descriptor, size)


def _closed(size: int, at: int) -> bytes:
    raise ValueError("the prompt pool is closed")


def _damaged(folder: Path, what: str, fix: str | None = None) -> RcdeployError:
    fix = fix or "Build it again: rcdeploy prompts build SOURCES --out DIR"
    return RcdeployError(f"the prompt pool {folder} is damaged: {what}", fix=fix)
