"""A folder of drawn pictures and of what networks read in them, in shards that are whole or not there.

Any number of processes or machines that see the folder may fill it together (claims.py), and a killed one goes on where
it was. Picture i is a function of (seed, i), its prompt, and what the folder's identity says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing
from rcdeploy_runtime.manifest import NAME, Manifest

from ..recipe import digest
from ..storage.claims import Claim
from ..storage.tensors import is_whole, load_tensors, save_tensors
from .networks import Network
from .reference import Progress, resized

Draw = Callable[[Sequence[str], range], Tensor]
"""n prompts and the n numbers of their pictures -> pictures uint8 [n, 3, h, w]"""


@dataclass(frozen=True)
class ImageSet:
    folder: Path
    prompts: list[str]
    shard_size: int
    batch_size: int
    size: tuple[int, int]
    """(height, width) in pixels of the pictures as they are kept"""

    @property
    def shards(self) -> list[range]:
        n, size = len(self.prompts), self.shard_size
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def pictures(self, shard: int) -> Tensor:
        """uint8 [rows of the shard, 3, h, w]."""
        return load_tensors(self._file("pictures", shard))["pictures"]

    def first(self, n: int) -> Tensor:
        """The first n pictures, or fewer when there are no more."""
        return torch.cat([self.pictures(shard) for shard, rows in enumerate(self.shards) if rows.start < n])[:n]

    def _file(self, what: str, shard: int) -> Path:
        return self.folder / f"{what}-{shard:05}.safetensors"

    def draw(self, draw: Draw, progress: Progress) -> int:
        """Makes the pictures that are not there; returns how many this process drew."""
        drawn = 0
        for shard, claim in self._missing("pictures", progress):
            rows, parts, whole = self.shards[shard], [], self._whole("pictures")
            for start in range(rows.start, rows.stop, self.batch_size):
                batch = range(start, min(start + self.batch_size, rows.stop))
                parts.append(_shrunk(draw(self.prompts[batch.start : batch.stop], batch), self.size))
                drawn += len(batch)
                claim.touch()
                progress("pictures", whole + batch.stop - rows.start, len(self.prompts))
            save_tensors(self._file("pictures", shard), {"pictures": torch.cat(parts)})
        return drawn

    def read(self, network: Network, progress: Progress) -> dict[str, Tensor]:
        """What the network reads in every picture, each [n, ...]; read once and kept."""
        for shard, claim in self._missing(network.key, progress):
            rows, whole = self.shards[shard], self._whole(network.key)
            readings = network.read_all(self.pictures(shard), self.prompts[rows.start : rows.stop])
            claim.touch()
            progress(network.name, whole + len(rows), len(self.prompts))
            save_tensors(self._file(network.key, shard), readings)
        parts = [load_tensors(self._file(network.key, shard)) for shard in range(len(self.shards))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _left(self, what: str) -> list[int]:
        return [i for i in range(len(self.shards)) if not is_whole(self._file(what, i))]

    def _whole(self, what: str) -> int:
        left = set(self._left(what))
        return sum(len(rows) for i, rows in enumerate(self.shards) if i not in left)

    def _missing(self, what: str, progress: Progress) -> Iterator[tuple[int, Claim]]:
        """Shards that nobody has made and nobody else makes, one after another, until all of them are there."""
        while left := self._left(what):
            progress(what.split("-")[0], self._whole(what), len(self.prompts))
            claims = {shard: Claim(self._file(what, shard)) for shard in left}
            mine = next((shard for shard, claim in claims.items() if claim.take()), None)
            if mine is None:
                time.sleep(0.5)  # the others are at the last ones; should one die, its claim can be taken
                continue
            try:
                # between the look and the claim another process may have finished it
                if not is_whole(self._file(what, mine)):
                    yield mine, claims[mine]
            finally:
                claims[mine].release()


def _shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[2:]) == size:
        return images
    return torch.stack([resized(Image.fromarray(i.permute(1, 2, 0).numpy()), size) for i in images])


def folder_of(name: str, identity: dict[str, Any]) -> Path:
    return Path("evaluations") / f"{name}-{digest(identity)[:8]}"


def open_set(
    folder: Path,
    prompts: list[str],
    identity: dict[str, Any],
    *,
    size: tuple[int, int],
    shard_size: int,
    batch_size: int,
    recipe: dict[str, Any] | None = None,
) -> ImageSet:
    """The set in `folder`, begun if nothing is there. A set that was begun keeps its shards' and batches' size.

    identity: what the pictures depend on. Raises RcdeployError when the folder holds pictures of something else.
    """
    claim = Claim(folder / "prepare")
    while not (folder / NAME).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if not claim.take():
            time.sleep(0.2)
            continue
        try:
            with replacing(folder / "prompts.txt") as beside:
                beside.write_text("".join(f"{p}\n" for p in prompts), encoding="utf-8")
            begun = {"identity": identity, "count": len(prompts), "shard_size": shard_size, "batch_size": batch_size}
            Manifest(kind="evaluation", recipe=recipe or {}, facts=begun).write(folder)
        finally:
            claim.release()
    facts = Manifest.read(folder, "evaluation").facts
    there = facts["identity"]
    differ = [f"{k}: {there.get(k)} there, {identity.get(k)} here" for k in identity if there.get(k) != identity[k]]
    if differ:
        raise RcdeployError(
            f"{folder} holds other pictures: " + "; ".join(differ),
            fix="Leave --out away and they get a folder of their own, or name another one.",
        )
    return ImageSet(folder, prompts, int(facts["shard_size"]), int(facts["batch_size"]), size)
