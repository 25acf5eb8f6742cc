"""The latent cache: x_0 latents of the paired prompts, sampled by the teacher and never decoded.

A folder of shards (safetensors, fp16, already multiplied by the scaling factor), the prompts they belong to, index.json
and manifest.json. A shard is there whole or not at all, so any number of processes or machines that see the folder may
fill it together, and an interrupted one continues with the next shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

from .prompts.pool import PromptPool
from .storage.shards import missing_shards, shard_ranges

MAX_LISTED_SHARDS = 3


@dataclass(frozen=True)
class LatentCacheFacts:
    """The facts of a cache's manifest.

    identity: everything its latents depend on. batch_size: images sampled at once, fixed when the cache is begun.
    images: with cache.source = "real", the file of each row.
    """

    identity: dict[str, Any]
    count: int
    shard_size: int
    batch_size: int
    images: list[str]


@dataclass(frozen=True)
class CacheFolder:
    """A cache that has been begun: its manifest and prompts are there, its shards perhaps not yet."""

    folder: Path
    manifest: Manifest
    facts: LatentCacheFacts

    @classmethod
    def read(cls, folder: Path) -> CacheFolder:
        """Raises RcdeployError when the folder is not a latent cache."""
        manifest = Manifest.read(folder, "latent_cache")
        return cls(folder, manifest, manifest.facts_as(LatentCacheFacts))

    @property
    def shard_rows(self) -> list[range]:
        return shard_ranges(self.facts.count, self.facts.shard_size)

    @property
    def shard_files(self) -> list[Path]:
        return [self.folder / f"latents-{i:05}.safetensors" for i in range(len(self.shard_rows))]

    def missing(self) -> list[int]:
        """Indices of the shards that are absent or truncated."""
        return missing_shards(self.shard_files)

    def describe_missing(self, missing: list[int]) -> str:
        """ "2 of 5 shards: latents-00001.safetensors, latents-00002.safetensors"."""
        names = [self.shard_files[i].name for i in missing[:MAX_LISTED_SHARDS]]
        more = ", ..." if len(missing) > MAX_LISTED_SHARDS else ""
        return f"{len(missing)} of {len(self.shard_files)} shards: {', '.join(names)}{more}"


@dataclass(frozen=True)
class LatentCache:
    """A complete cache. Latents are read row by row from memory-mapped shards; they need no memory of their own."""

    folder: Path
    manifest: Manifest
    facts: LatentCacheFacts
    prompts: PromptPool
    shards: list[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.manifest.latents["shape"]
        return c, h, w

    def __len__(self) -> int:
        return self.facts.count

    def latents(self, rows: Sequence[int]) -> Tensor:
        """rows -> scaled x_0 [n, c, h, w], fp32."""
        size = self.facts.shard_size
        return torch.cat([self.shards[r // size][r % size : r % size + 1] for r in rows]).float()

    @classmethod
    def open(cls, folder: Path) -> LatentCache:
        """Raises RcdeployError when it is missing, incomplete, or a shard is truncated (the shard is named)."""
        cache = CacheFolder.read(folder)
        if missing := cache.missing():
            raise RcdeployError(
                f"the latent cache {folder} lacks {cache.describe_missing(missing)}",
                fix="`rcdeploy cache RECIPE` makes what is missing.",
            )
        shards = [safe_open(file, "pt").get_slice("latents") for file in cache.shard_files]
        return cls(folder, cache.manifest, cache.facts, PromptPool.open(folder / "prompts"), shards)
