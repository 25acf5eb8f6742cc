"""The prompt pool: the texts C from which random conditioning draws, up to tens of millions, on disk.

    prompts.bin    the prompts in UTF-8, one after another, nothing between them
    offsets.bin    count + 1 little-endian uint64: prompt i is the bytes offsets[i] to offsets[i + 1] of prompts.bin
    manifest.json  kind "prompt_pool"

Opening looks at three file sizes and 16 bytes, a draw is two reads of a few bytes, and nothing is kept: time and memory
do not grow with the pool. Files are read with pread and not mapped: touched pages of a map count as resident memory,
and 5 million prompts drawn at random made a process 400 MB bigger that way.
"""

from __future__ import annotations

import hashlib
import operator
import os
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder
from rcdeploy_runtime.manifest import Manifest

from .keep import COUNTED, Filters, Sample, Seen, nothing_left, select
from .readers import batches, count_rows, files_of

PROMPTS, OFFSETS = "prompts.bin", "offsets.bin"
_unpack_pair = struct.Struct("<QQ").unpack
_ITERATION_ROWS = 8192

ReadAt = Callable[[int, int], bytes]
"""(bytes to read, where to begin) -> the bytes; fewer only at the end of the file."""


class PromptPool:
    """A folder of prompts, read where it lies. Threads may share one; a fork or a pickle (re-opened by path) may too.

    A pool that is replaced on disk while open goes on reading the old files.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use PromptPool.open, which checks what it opens."""
        self.folder, self.manifest = folder, manifest
        self._count: int = manifest.facts["count"]
        self._bytes: int = manifest.facts["bytes"]
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
        count, size = manifest.facts.get("count"), manifest.facts.get("bytes")
        if not isinstance(count, int) or not isinstance(size, int) or not {PROMPTS, OFFSETS} <= set(manifest.files):
            raise _damaged(folder, "its manifest does not say how many prompts it holds, and in which files")
        for name, expected in ((PROMPTS, size), (OFFSETS, 8 * (count + 1))):
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != expected:
                state = "is missing" if found is None else f"has {found:,} bytes instead of {expected:,}"
                raise _damaged(folder, f"{name} {state}")
        pool = cls(folder, manifest)
        first, last = _unpack_pair(pool._read_offsets(8, 0) + pool._read_offsets(8, 8 * count))
        if (first, last) != (0, size):
            pool.close()
            raise _damaged(folder, f"{OFFSETS} does not span {PROMPTS}")
        return pool

    @property
    def digest(self) -> str:
        """64 hex digits that identify the prompts and their order, wherever the pool lies. Taken from the manifest."""
        recorded = "".join(str(self.manifest.files[name].get("sha256")) for name in (PROMPTS, OFFSETS))
        return hashlib.sha256(recorded.encode()).hexdigest()

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

        What is drawn depends on the state of `rng` and on the pool only. Raises ValueError when n is negative.
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


def _damaged(folder: Path, what: str) -> RcdeployError:
    fix = "Build it again: rcdeploy prompts build SOURCES --out DIR"
    return RcdeployError(f"the prompt pool {folder} is damaged: {what}", fix=fix)


def build_pool(
    sources: list[Path],
    out: Path,
    column: str | None = None,
    deduplicate: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Callable[[int, int | None], None] | None = None,
    *,
    min_length: int = 0,
    max_length: int | None = None,
    script: str = "any",
    sample: int | None = None,
    seed: int = 0,
) -> PromptPool:
    """Builds a pool at `out` from caption files and folders of them (see readers), and opens it.

    Stored is the normalised caption: no white space at its ends, one space for every run of it (as str.split sees it).
    Of equal ones the first is kept. They are told apart by 64-bit hashes, 8 bytes of memory a caption; among 20 million
    captions the chance that even one is taken for another is about 1e-5. (Measured: 320 MB in all at 20 million.)

    include, exclude: regular expressions (Python's re), looked for anywhere in the normalised caption, upper and lower
    case alike, but only as whole words: no letter, digit or underscore may come right before or after the match. "cat"
    finds "A Cat." but not "category"; write "cat\\w*" for both. Kept is a caption in which some `include` is found (or
    there is none) and no `exclude`. min_length, max_length: in characters, once normalised. script: "latin" drops
    captions with a letter of another script. sample: exactly so many of what is left (all, if it is less), uniformly,
    by `seed`; the whole never is on disk. progress: called with (rows so far, rows in all or None when unknown).

    A pool at `out` is replaced, once the new one is whole. Raises RcdeployError when `out` is something else than a
    pool or holds a source, a pattern or a source is wrong (see readers), no caption is left, or the disk is full.
    """
    out = Path(out).resolve()
    filters = Filters.make(include, exclude, min_length, max_length, script)
    files = {str(source): files_of(Path(source)) for source in sources}
    all_files = [file for some in files.values() for file in some]
    _refuse_to_replace(out, all_files)
    total = count_rows(all_files)
    seen, drawn = Seen() if deduplicate else None, Sample(sample, seed) if sample is not None else None
    tallies: dict[str, Counter[str]] = {name: Counter() for name in files}

    def kept() -> Iterator[list[str]]:
        for name, tally in tallies.items():
            for rows in batches(files[name], column):
                passed = filters(rows, tally)
                new = seen.new(passed) if seen else passed
                kept_rows = drawn.candidates(new) if drawn else new
                tally.update(duplicate=len(passed) - len(new), not_drawn=len(new) - len(kept_rows), kept=len(kept_rows))
                yield kept_rows
                if progress:
                    progress(sum(t["rows"] for t in tallies.values()), total)

    with new_folder(out) as folder:
        count, size = _write(folder, kept())
        if drawn:
            chosen = drawn.chosen()
            count, size = select(folder, PROMPTS, OFFSETS, chosen)
            _count_drawn(tallies, chosen)
        sources_of = _tallied(files, tallies)
        dropped = {why: sum(source[why] for source in sources_of) for why in COUNTED[2:]}
        if not count:
            raise nothing_left(dropped)
        options: dict[str, Any] = {
            "column": column,
            "deduplicate": deduplicate,
            "include": [*include],
            "exclude": [*exclude],
        }
        options |= {"min_length": min_length, "max_length": max_length, "script": script}
        options |= {"sample": sample, "seed": seed} if sample is not None else {}
        facts = {"count": count, "bytes": size, "sources": sources_of, "dropped": dropped, "options": options}
        manifest = Manifest("prompt_pool", facts=facts)
        for name in (PROMPTS, OFFSETS):
            manifest.add_file(folder, name)
        manifest.write(folder)  # last: without it the folder is no pool
    return PromptPool.open(out)


def _tallied(files: dict[str, list[Path]], tallies: dict[str, Counter[str]]) -> list[dict[str, Any]]:
    """What the manifest says of each source. A file name need not be UTF-8, a manifest must."""
    names = {name: name.encode(errors="replace").decode() for name in files}
    return [{"name": names[n], "files": len(files[n])} | {k: t[k] for k in COUNTED} for n, t in tallies.items()]


def _count_drawn(tallies: dict[str, Counter[str]], chosen: np.ndarray) -> None:
    """Candidates of the sample were counted as kept: those that are not in it are no longer."""
    first = 0
    for tally in tallies.values():
        candidates = tally["kept"]
        kept = int(chosen[first : first + candidates].sum())
        tally.update(kept=kept - candidates, not_drawn=candidates - kept)
        first += candidates


def _refuse_to_replace(out: Path, files: list[Path]) -> None:
    """What stands at `out` is deleted in the end: it must be a pool of ours (or empty) and hold none of the sources."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        try:
            Manifest.read(out, "prompt_pool")
        except RcdeployError as error:
            fix = "Nothing was written. Choose another --out, or remove it yourself."
            raise RcdeployError(f"{out} exists and is not replaced: {error.message}", fix=fix) from None
    if inside := [file for file in files if file.resolve().is_relative_to(out)]:
        raise RcdeployError(f"{inside[0]} lies in {out}, which would be replaced", fix="Choose another --out.")


def _write(folder: Path, batched: Iterable[list[str]]) -> tuple[int, int]:
    """Writes prompts.bin and offsets.bin batch by batch; returns the number of prompts and their bytes."""
    count = size = 0
    with (folder / PROMPTS).open("wb") as prompts, (folder / OFFSETS).open("wb") as offsets:
        offsets.write(bytes(8))
        for texts in batched:
            encoded = [text.encode() for text in texts]
            ends = size + np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            offsets.write(ends.astype("<u8").tobytes())
            size += prompts.write(b"".join(encoded))
            count += len(texts)
    return count, size
