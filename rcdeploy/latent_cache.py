"""The latent cache: x_0 latents of the paired prompts, sampled by the teacher and never decoded.

A folder of shards (safetensors, fp16, already multiplied by the scaling factor), the prompts they belong to, index.json
and manifest.json. A shard is there whole or not at all, so any number of processes or machines that see the folder may
fill it together, and an interrupted one continues with the next shard. Each shard carries its own digest in its
metadata: it appears with the shard in one rename, and no file has to be written in turns.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rcdeploy_runtime.digests import DigestCache
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

from .prompts.pool import POOL_FILES, PromptPool, open_whole, pool_digest
from .storage.shards import missing_shards, shard_ranges
from .storage.tensors import is_whole, own_digest, recorded_digest

MAX_LISTED_SHARDS = 3


@dataclass(frozen=True)
class LatentCacheFacts:
    """The facts of a cache's manifest.

    identity: everything its latents depend on. batch_size: images sampled at once, fixed when the cache is begun.
    images: with cache.source = "real", the file of each row. prompts: the digest of prompts/; None in caches of
    rcdeploy 0.1.
    """

    identity: dict[str, Any]
    count: int
    shard_size: int
    batch_size: int
    images: list[str]
    prompts: str | None = None


@dataclass(frozen=True)
class CacheFolder:
    """A cache that has been begun: its manifest and prompts are there, its shards perhaps not yet.

    digests: of its files, which are read once until they change.
    """

    folder: Path
    manifest: Manifest
    facts: LatentCacheFacts
    digests: DigestCache

    @classmethod
    def read(cls, folder: Path, digests: DigestCache | None = None) -> CacheFolder:
        """Raises RcdeployError when the folder is not a latent cache. digests: instead of the remembered ones."""
        manifest = Manifest.read(folder, "latent_cache")
        return cls(folder, manifest, manifest.facts_as(LatentCacheFacts), digests or DigestCache())

    @property
    def shard_rows(self) -> list[range]:
        return shard_ranges(self.facts.count, self.facts.shard_size)

    @property
    def shard_files(self) -> list[Path]:
        return [self.folder / f"latents-{i:05}.safetensors" for i in range(len(self.shard_rows))]

    @property
    def prompts_digest(self) -> str | None:
        """The digest that prompts/ must have; None in an unfinished cache of rcdeploy 0.1."""
        listed = {name: self.manifest.files.get(f"prompts/{name}", {}) for name in POOL_FILES}
        return self.facts.prompts or (pool_digest(listed) if all(listed.values()) else None)

    def missing(self) -> list[int]:
        """Indices of the shards that are absent, truncated, or changed since they were written."""
        missing = missing_shards(self.shard_files, self.is_whole)
        self.digests.save()
        return missing

    def is_whole(self, file: Path) -> bool:
        """Whether a shard is there as it was written; of an unfinished cache of rcdeploy 0.1 its length is checked."""
        return is_whole(file) and not self.has_changed(file)

    def has_changed(self, file: Path) -> bool:
        """Whether the digest of a shard is not the recorded one: in the shard, or in the manifest (rcdeploy 0.1)."""
        try:
            if recorded := recorded_digest(file):
                return self.digests.sha256(file, own_digest) != recorded
            listed = self.manifest.files.get(file.name)
            return listed is not None and self.digests.sha256(file) != listed["sha256"]
        except (OSError, ValueError, AttributeError, struct.error):  # it is being replaced, or its header is damaged
            return True

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
        """Raises RcdeployError when it is missing, incomplete, or a file of it is damaged (the file is named)."""
        return cls.open_filled(CacheFolder.read(folder))

    @classmethod
    def open_filled(cls, cache: CacheFolder) -> LatentCache:
        """`open` for a folder that was read already."""
        folder = cache.folder
        if missing := cache.missing():
            raise RcdeployError(
                f"the latent cache {folder} lacks {cache.describe_missing(missing)}",
                fix="`rcdeploy cache RECIPE` makes what is missing.",
            )
        prompts = open_whole(folder / "prompts", cache.digests, "`rcdeploy cache RECIPE` makes it again.")
        shards = [safe_open(file, "pt").get_slice("latents") for file in cache.shard_files]
        return cls(folder, cache.manifest, cache.facts, prompts, shards)
