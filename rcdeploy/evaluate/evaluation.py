"""An evaluation from end to end: images generated, network outputs computed, metrics scored, results written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.files import write_json

from ..plots import grid
from ..progress import Log, Progress, no_log, no_progress
from ..recipe import digest
from .image_set import ImageSet, default_folder, open_image_set
from .image_source import Generate, ImageSource, open_image_source, torch_device
from .images import write_png
from .metrics import Outputs, Scorer, open_scorer
from .spec import EvaluationSpec, split_counts
from .target import EvaluationTarget

GRID_IMAGES = 32
GRID_COLUMNS = 8
MAX_FILE_NAME_BYTES = 200
"""of a prompt, before the number and the extension"""


def identity_of(
    model_digest: str, native_size: tuple[int, int], prompts: Sequence[str], spec: EvaluationSpec
) -> dict[str, Any]:
    """Everything that the images depend on, as JSON. native_size: (height, width) that the model generates."""
    return {
        "model": model_digest,
        "prompts": digest(list(prompts)),
        "count": len(prompts),
        "seed": spec.seed,
        **({} if spec.noise_seed is None else {"noise_seed": spec.noise_seed}),
        **spec.sampling,
        "drawn_size": list(native_size),
        "size": list(spec.image_size(native_size)),
    }


@dataclass(frozen=True)
class Evaluation:
    """A model, its image set and its scorer, ready to run; everything was checked that can be before sampling."""

    spec: EvaluationSpec
    source: ImageSource
    image_set: ImageSet
    scorer: Scorer
    identity: dict[str, Any]

    @classmethod
    def prepare(
        cls,
        target: EvaluationTarget,
        spec: EvaluationSpec,
        prompts: list[str],
        *,
        folder: Path | None = None,
        device: str = "auto",
        progress: Progress = no_progress,
    ) -> Evaluation:
        """Loads the model and the networks, opens or begins the folder (by default evaluations/NAME-DIGEST)."""
        source = open_image_source(target, device)
        identity = identity_of(source.model["digest"], source.size, prompts, spec)
        size = spec.image_size(source.size)
        scorer = open_scorer(spec, size=size, device=torch_device(device), progress=progress)
        image_set = open_image_set(
            folder or default_folder(source.name, identity),
            prompts,
            identity,
            size=size,
            shard_size=spec.images_per_shard(len(prompts)),
            batch_size=spec.batch_size,
            recipe=target.recipe,
        )
        return cls(spec, source, image_set, scorer, identity)

    def run(self, split: Sequence[bool] | None, progress: Progress = no_progress, log: Log = no_log) -> dict[str, Any]:
        """As `evaluate`, with the record of the model and of everything used: what scores.json holds."""
        result = evaluate(
            self.image_set, self.source.generate, self.scorer, self.spec, split=split, progress=progress, log=log
        )
        spec = self.spec
        return {
            "folder": str(self.image_set.folder),
            "model": self.source.model,
            "identity": self.identity,
            "prompts": {
                "files": [str(file) for file in spec.prompt_files],
                "include": list(spec.include),
                "exclude": list(spec.exclude),
                "repeat": spec.repeat,
            },
            "weights": self.scorer.record,
            **result,
        }


def generate_images(
    image_set: ImageSet, generate: Generate, spec: EvaluationSpec, progress: Progress = no_progress, log: Log = no_log
) -> int:
    """Generates missing images by the spec's seed and sampling settings; returns how many this process made."""

    def generate_rows(prompts: Sequence[str], rows: range) -> Any:
        return generate(prompts, [spec.first_noise_seed + row for row in rows], spec.sampling)

    return image_set.generate_missing(generate_rows, progress, log)


def evaluate(
    image_set: ImageSet,
    generate: Generate,
    scorer: Scorer,
    spec: EvaluationSpec,
    *,
    split: Sequence[bool] | None = None,
    progress: Progress = no_progress,
    log: Log = no_log,
) -> dict[str, Any]:
    """Generates missing images, computes missing network outputs, and scores; many processes may share the folder.

    Args:
        generate: samples images from prompts and seeds.
        spec: its seed and sampling settings are used.
        split: which prompts belong to the part "with"; None scores all together only.
        log: receives the processes that this one waits for.

    Returns:
        {"scores": {"all", "with"?, "without"?}, "counts", "seconds"}; the seconds are this process's.
    """
    start = time.perf_counter()
    generated = generate_images(image_set, generate, spec, progress, log)
    sampled = time.perf_counter()
    outputs: Outputs = {name: image_set.outputs_of(net, progress, log) for name, net in scorer.networks.items()}
    parts: dict[str, list[bool] | None] = {"all": None}
    if split is not None:
        parts |= {"with": list(split), "without": [not x for x in split]}
    return {
        "scores": {part: scorer.scores(outputs, image_set.prompts, rows) for part, rows in parts.items()},
        "counts": split_counts(len(image_set.prompts), split),
        "seconds": {
            "pictures_drawn": generated,
            "drawing": round(sampled - start, 3),
            "reading": round(time.perf_counter() - sampled, 3),
        },
    }


def write_results(image_set: ImageSet, record: dict[str, Any]) -> None:
    """scores.json, and pictures.png: a grid of the first images with their prompts."""
    write_json(image_set.folder / "scores.json", record)
    images = image_set.first_images(GRID_IMAGES) / 255
    starts = range(0, len(images), GRID_COLUMNS)
    rows = [(f"{i + 1} to {min(i + GRID_COLUMNS, len(images))}", images[i : i + GRID_COLUMNS]) for i in starts]
    captions = [image_set.prompts[i : min(i + GRID_COLUMNS, len(images))] for i in starts]
    grid(rows, (), image_set.folder / "pictures.png", row_captions=captions)


def write_pngs(image_set: ImageSet, folder: Path, progress: Progress = no_progress) -> None:
    """Every image as a PNG named {prompt}_{number:06}.png, as T2I-CompBench's evaluators expect.

    Slashes in a prompt become spaces, and it is cut to MAX_FILE_NAME_BYTES, for the sake of file systems.
    """
    written = 0
    for shard, rows in enumerate(image_set.shards):
        for row, image in zip(rows, image_set.images(shard), strict=True):
            prompt = image_set.prompts[row].replace("/", " ").encode()[:MAX_FILE_NAME_BYTES].decode(errors="ignore")
            write_png(image, folder / f"{prompt}_{row:06}.png")
            written += 1
        progress("writing images", written, len(image_set.prompts))
