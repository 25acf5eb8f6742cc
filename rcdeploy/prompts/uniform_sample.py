"""A uniform sample of a stream of captions too long for memory: the captions with the smallest keys.

Equal captions count once: their keys are hashes of the text, so they are equal too, and a caption's chance does not
depend on how often it comes. That is a bottom-k sketch (Cohen and Kaplan, "Summarizing data using bottom-k sketches",
2007). No deduplication of the whole stream comes before it: memory is that of the sample, however many captions come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import compress
from pathlib import Path

import numpy as np

from rcdeploy_runtime.files import HASH_CHUNK_BYTES

NOT_SAMPLED, SAMPLED, DUPLICATE = range(3)
"""what becomes of a candidate"""
MAX_KEY = np.uint64(2**64 - 1)
MIN_PENDING = 65_536
KEYS_PER_BLOCK = HASH_CHUNK_BYTES // 8


class UniformSample:
    """Exactly `size` of a stream of captions (all, if fewer come), each set of that size equally likely.

    Every caption gets a key of 64 bits; the `size` smallest keys win. A caption that cannot be among them is dropped at
    once, so of n different captions about size x (1 + ln(n / size)) are candidates. Their keys go to a file; in memory
    are the smallest ones, 8 bytes each, and twice that for moments.
    """

    def __init__(self, size: int, seed: int, keys_file: Path, *, distinct: bool = True) -> None:
        """keys_file: is written, and removed by verdicts(). distinct: of equal captions only the first counts."""
        self.size = size
        self._distinct = distinct
        self._salt = hashlib.blake2b(str(seed).encode(), digest_size=hashlib.blake2b.SALT_SIZE).digest()
        self._rng = np.random.Generator(np.random.Philox(seed))
        self._bound = MAX_KEY
        self._smallest = np.empty(0, np.uint64)
        self._pending: list[np.ndarray] = []
        self._pending_count = 0
        self._keys_file = keys_file
        self._file = keys_file.open("wb")

    def candidates(self, texts: list[str]) -> list[str]:
        """The texts that may still be in the sample, in order."""
        keys = self._keys(texts)
        near = keys <= self._bound
        self._file.write(keys[near].astype("<u8").tobytes())
        self._pending.append(keys[near])
        self._pending_count += len(self._pending[-1])
        if self._pending_count > self.size // 4 + MIN_PENDING:  # not every time: it sorts `size` keys
            self._merge()
        return list(compress(texts, near.tolist()))

    def _keys(self, texts: list[str]) -> np.ndarray:
        if not self._distinct:
            return self._rng.integers(0, MAX_KEY, len(texts), np.uint64, endpoint=True)
        digests = [hashlib.blake2b(text.encode(), digest_size=8, salt=self._salt).digest() for text in texts]
        return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)

    def _merge(self) -> None:
        """Takes the pending keys among the smallest, which are sorted and different."""
        keys = np.concatenate([self._smallest, *self._pending])
        self._smallest = np.empty(0, np.uint64)  # freed before the sort needs memory
        self._pending, self._pending_count = [], 0
        keys.sort()
        is_first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        keys = keys[is_first]
        self._smallest = keys[: self.size].copy()
        if len(self._smallest) == self.size:
            self._bound = self._smallest[-1]

    def verdicts(self) -> np.ndarray:
        """For every candidate, in order, SAMPLED, DUPLICATE (of a sampled one) or NOT_SAMPLED: [n] bytes.

        No candidate may come after this.
        """
        self._merge()
        self._file.close()
        seen = np.zeros(len(self._smallest), bool)
        blocks = [self._verdicts_of(keys, seen) for keys in self._blocks()]
        self._keys_file.unlink()
        self._smallest = np.empty(0, np.uint64)
        return np.concatenate([np.empty(0, np.uint8), *blocks])

    def _blocks(self) -> Iterator[np.ndarray]:
        with self._keys_file.open("rb") as file:
            while block := file.read(8 * KEYS_PER_BLOCK):
                yield np.frombuffer(block, "<u8")

    def _verdicts_of(self, keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """seen: for each of the smallest keys, whether it came before; is updated."""
        values, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
        at = np.minimum(np.searchsorted(self._smallest, values), len(self._smallest) - 1)
        is_small = self._smallest[at] == values
        result = np.where(is_small, DUPLICATE, NOT_SAMPLED).astype(np.uint8)[inverse]
        new = is_small & ~seen[at]
        result[firsts[new]] = SAMPLED
        seen[at[new]] = True
        return result
