"""A folder of generated images and of network outputs for them, in shards that are whole or absent.

Any number of processes or machines that see the folder may fill it together (storage/shards.py), and a killed one
resumes where it stopped. Image i is a function of (seed, i), its prompt, and the folder's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing
from rcdeploy_runtime.manifest import NAME, Manifest

from ..progress import Log, Progress, no_log
from ..recipe import digest
from ..storage.claims import Claim, make_once
from ..storage.shards import claim_missing_shards, missing_shards, shard_ranges
from ..storage.tensors import load_tensors, save_tensors
from .images import resized_batch
from .networks import Network

GenerateRows = Callable[[Sequence[str], range], Tensor]
"""n prompts and the indices of their n images -> images uint8 [n, 3, h, w]"""
IMAGES = "pictures"
"""the prefix of image shards and the name of their tensor"""


@dataclass(frozen=True)
class EvaluationFacts:
    """Facts in the manifest of an evaluation. identity: everything that the images depend on."""

    identity: dict[str, Any]
    count: int
    shard_size: int
    batch_size: int


@dataclass(frozen=True)
class ImageSet:
    """The images of an evaluation folder and what networks computed from them.

    size: (height, width) in pixels of the stored images.
    """

    folder: Path
    prompts: list[str]
    shard_size: int
    batch_size: int
    size: tuple[int, int]

    @classmethod
    def open(cls, folder: Path, prompts: list[str]) -> ImageSet:
        """An existing set of images of these prompts."""
        facts = Manifest.read(folder, "evaluation").facts_as(EvaluationFacts)
        height, width = facts.identity["size"]
        return cls(folder, prompts, facts.shard_size, facts.batch_size, (int(height), int(width)))

    @property
    def shards(self) -> list[range]:
        """The rows of each shard."""
        return shard_ranges(len(self.prompts), self.shard_size)

    def shard_files(self, prefix: str) -> list[Path]:
        return [self.folder / f"{prefix}-{shard:05}.safetensors" for shard in range(len(self.shards))]

    def images(self, shard: int) -> Tensor:
        """uint8 [rows of the shard, 3, h, w]."""
        return load_tensors(self.shard_files(IMAGES)[shard])[IMAGES]

    def first_images(self, n: int) -> Tensor:
        """The first n images, or all of them when there are fewer."""
        return torch.cat([self.images(shard) for shard, rows in enumerate(self.shards) if rows.start < n])[:n]

    def stored_images(self) -> int:
        """The number of images in whole shards."""
        return self._completed(missing_shards(self.shard_files(IMAGES)))

    def delete_images(self) -> None:
        """Network outputs stay."""
        for file in self.shard_files(IMAGES):
            file.unlink(missing_ok=True)

    def generate_missing(self, generate: GenerateRows, progress: Progress, log: Log = no_log) -> int:
        """Generates the images that are absent; returns how many this process made. log: for whom it waits."""
        files = self.shard_files(IMAGES)
        generated = 0
        for shard, _ in claim_missing_shards(files, waiting=self._reporter("images", progress), log=log):
            rows = self.shards[shard]
            completed = self.stored_images()
            batches = []
            for start in range(rows.start, rows.stop, self.batch_size):
                batch = range(start, min(start + self.batch_size, rows.stop))
                batches.append(resized_batch(generate(self.prompts[batch.start : batch.stop], batch), self.size))
                generated += len(batch)
                progress("images", completed + batch.stop - rows.start, len(self.prompts))
            save_tensors(files[shard], {IMAGES: torch.cat(batches)})
        return generated

    def outputs_of(self, network: Network, progress: Progress, log: Log = no_log) -> dict[str, Tensor]:
        """The network's outputs for every image, each [n, ...]; computed once and stored."""
        files = self.shard_files(network.key)
        for shard, _ in claim_missing_shards(files, waiting=self._reporter(network.name, progress), log=log):
            rows = self.shards[shard]
            completed = self._completed(missing_shards(files))
            outputs = network(self.images(shard), self.prompts[rows.start : rows.stop])
            progress(network.name, completed + len(rows), len(self.prompts))
            save_tensors(files[shard], outputs)
        shards = [load_tensors(file) for file in files]
        return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}

    def _completed(self, missing: Sequence[int]) -> int:
        """Rows of all shards but the missing ones."""
        return len(self.prompts) - sum(len(self.shards[shard]) for shard in missing)

    def _reporter(self, stage: str, progress: Progress) -> Callable[[list[int]], None]:
        return lambda missing: progress(stage, self._completed(missing), len(self.prompts))


def default_folder(name: str, identity: dict[str, Any]) -> Path:
    """evaluations/NAME-DIGEST."""
    return Path("evaluations") / f"{name}-{digest(identity)[:8]}"


def open_image_set(
    folder: Path,
    prompts: list[str],
    identity: dict[str, Any],
    *,
    size: tuple[int, int],
    shard_size: int,
    batch_size: int,
    recipe: dict[str, Any] | None = None,
) -> ImageSet:
    """The image set in `folder`, begun when there is none.

    Args:
        identity: everything that the images depend on, as JSON.
        size: (height, width) in pixels of the stored images.
        shard_size, batch_size: for a new set; one that was begun before keeps its own.
        recipe: of the model, for the manifest.

    Raises:
        RcdeployError: the folder holds images of another identity.
    """

    def begin() -> None:
        with replacing(folder / "prompts.txt") as temporary:
            temporary.write_text("".join(f"{p}\n" for p in prompts), encoding="utf-8")
        facts = EvaluationFacts(identity, len(prompts), shard_size, batch_size)
        Manifest(kind="evaluation", recipe=recipe or {}, facts=dict(vars(facts))).write(folder)

    made = [folder / "prompts.txt", folder, folder.parent]
    make_once(begin, folder / NAME, Claim(folder / "prepare"), made)
    facts = Manifest.read(folder, "evaluation").facts_as(EvaluationFacts)
    differing = [key for key in identity if facts.identity.get(key) != identity[key]]
    if differing:
        raise RcdeployError(
            f"{folder} holds other images than these:",
            errors=[f"{key}: {facts.identity.get(key)} in the folder, {identity[key]} here" for key in differing],
            fix="Leave --out out to give these a folder of their own, or name another folder.",
        )
    return ImageSet(folder, prompts, facts.shard_size, facts.batch_size, size)
