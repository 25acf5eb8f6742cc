"""Sharded folders that several processes or machines fill together: each missing shard is claimed by one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..progress import Log, no_log
from .claims import Claim, Waiting
from .tensors import is_whole


def shard_ranges(count: int, shard_size: int) -> list[range]:
    """The rows of each shard of `count` rows."""
    return [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]


def missing_shards(files: Sequence[Path], whole: Callable[[Path], bool] | None = None) -> list[int]:
    """Indices of the shards that are absent or truncated, or that `whole` finds damaged."""
    return [i for i, file in enumerate(files) if not (whole or is_whole)(file)]


def claim_missing_shards(
    files: Sequence[Path],
    *,
    whole: Callable[[Path], bool] | None = None,
    offset: int = 0,
    waiting: Callable[[list[int]], None] = lambda _missing: None,
    log: Log = no_log,
) -> Iterator[tuple[int, Claim]]:
    """Yields (shard, claim) for every shard to make here, until all files are whole; the caller writes files[shard].

    Args:
        whole: whether a file is as it was written; by default whether its length is what its header announces.
        offset: rotates the order, so that processes that start together begin at different shards.
        waiting: called with the missing shards before each attempt, for progress.
        log: receives whom this process waits for, once the remaining shards are all being made by others.

    While others hold the claims of the last shards this waits for them; the shard of a process that died is taken over.
    """
    others = Waiting(log)
    while missing := missing_shards(files, whole):
        waiting(missing)
        start = offset % len(missing)
        claims = {shard: Claim(files[shard]) for shard in missing[start:] + missing[:start]}
        shard = next((shard for shard, claim in claims.items() if claim.take()), None)
        if shard is None:
            others.wait(claims[missing[0]], files[missing[0]])
            continue
        try:
            # another process may have finished it between the check and the claim
            if not (whole or is_whole)(files[shard]):
                yield shard, claims[shard]
        finally:
            claims[shard].release()
