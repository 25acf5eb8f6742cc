"""The run folder: recipe, manifest, metrics, and whether a run may be continued with a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rcdeploy_runtime import files
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from .model_folder import MODEL_INDEX
from .recipe import SECTIONS, STAGES, Recipe
from .storage.claims import STALE_SECONDS, Claim

METRICS = "metrics.jsonl"

CHANGEABLE = {
    ("train", "max_steps"),
    ("few_steps", "max_steps"),
    ("train", "checkpoint_every"),
    ("train", "keep_checkpoints"),
    ("train", "log_every"),
    ("train", "trackers"),
    ("train", "text_cache_gb"),
    ("cache", "folder"),
    ("cache", "batch_size"),
    ("cache", "images"),
    ("teacher", "path"),
    ("teacher", "revision"),
    ("prompts", "paired"),
    ("prompts", "pool"),
    ("prompts", "per_noun"),
}
"""Keys that may change when a run is continued, beside those of [evaluate]: how long, how often it saves and logs, and
where things lie (their digests are compared)."""


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run's manifest.

    steps: updates done when the manifest was written. cache_folder: as the recipe resolved it. sampling: how the
    student wants to be sampled; None in runs that rcdeploy 0.1 began. The last five are there
    once the run has finished: pipeline_step is the step whose EMA weights are in pipeline/, score the metric that
    best_score is of.
    """

    student: str
    init: str
    steps: int
    cache_folder: str
    machine: dict[str, Any]
    sampling: SamplingDefaults | None = None
    finished: bool = False
    best_step: int | None = None
    best_score: float | None = None
    score: str | None = None
    pipeline_step: int | None = None

    def finished_with(self, **facts: Any) -> RunFacts:
        return replace(self, finished=True, **facts)

    def as_json(self) -> dict[str, Any]:
        """Without the keys of a finished run, until it is one."""
        facts = asdict(self)
        if not self.finished:
            for key in ("finished", "best_step", "best_score", "score", "pipeline_step"):
                del facts[key]
        return facts


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the claim on a run folder, run.claim in it, so that no other process trains there meanwhile.

    Does nothing on other processes of a distributed run than the first. A folder that is made for the claim and stays
    empty is removed again. Raises RcdeployError that names the process at work there.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RcdeployError(f"cannot make the run folder {folder}: {error.strerror}") from error
    claim = Claim(folder / "run")
    if not claim.take():
        holder = claim.holder()
        raise RcdeployError(
            f"{holder or 'another process'} has been at work on the run {folder}{holder.since_text if holder else ''}",
            fix="Wait for it, stop it, or give this run a folder of its own with --out. (The claim of a machine that "
            f"failed, {claim.path}, expires {STALE_SECONDS:.0f} seconds after its last sign of life.)",
        )
    try:
        yield
    finally:
        claim.release()
        for path in new:
            with suppress(OSError):  # not empty
                path.rmdir()


def check_recipe(folder: Path, recipe: Recipe, stage: str | None = None) -> None:
    """Raises RcdeployError that lists the differences, when `folder` holds a run of another recipe.

    stage: the section of the stage that the folder belongs to; those of other stages may differ.
    """
    if not (folder / NAME).is_file():
        return
    before = Manifest.read(folder, "run").recipe
    differences = [
        f"{section}.{key}: {before.get(section, {}).get(key)} -> {value}"
        for section, keys in recipe.resolved().items()
        if isinstance(keys, dict) and section not in {"evaluate", *STAGES} - {stage}
        for key, value in keys.items()
        if (section, key) not in CHANGEABLE and _recorded(before, section, key) != value
    ]
    if differences:
        raise RcdeployError(
            f"{folder} holds a run of another recipe",
            fix="Give --out another folder, or start over with --restart (which removes that run).",
            errors=differences,
        )


def _recorded(recipe: dict[str, Any], section: str, key: str) -> Any:
    """The value in a run's resolved recipe; of a key that is younger than the run, the default of today."""
    keys = recipe.get(section)
    if keys is None or key in keys:
        return (keys or {}).get(key)
    return SECTIONS[section].model_fields[key].default


def finished_steps(folder: Path, recipe: Recipe, stage: str | None = None) -> int | None:
    """Steps of a run that has finished with this very recipe; None if there is something left to do.

    A larger max_steps continues a finished run, and another evaluate.score or evaluate.keep may choose the weights of
    another step for its pipeline. Raises RcdeployError for a run of another recipe.

    stage: the section of the stage that the folder belongs to; None for distillation.
    """
    if not (folder / NAME).is_file():
        return None
    check_recipe(folder, recipe, stage)
    manifest = Manifest.read(folder, "run")
    facts = manifest.facts_as(RunFacts)
    recorded = manifest.recipe.get("evaluate", {})
    is_finished = (
        facts.finished
        and facts.steps >= getattr(recipe, stage or "train").max_steps
        and (folder / "pipeline" / MODEL_INDEX).is_file()
        and all(recorded.get(key) == getattr(recipe.evaluate, key) for key in ("score", "keep"))
    )
    return facts.steps if is_finished else None


def check_sources(manifest: Manifest, sources: dict[str, str]) -> None:
    """Compares teacher, cache and pool with those of the run, by digest: {"teacher", "latent_cache", "prompt_pool"}.

    Raises RcdeployError that names those that differ.
    """
    recorded = {m["kind"]: m["sha256"] for m in manifest.made_from} | {"teacher": manifest.teacher.get("revision", "")}
    changed = [name for name, value in sources.items() if recorded.get(name) != value]
    if changed:
        raise RcdeployError(
            f"the run was started with another {' and another '.join(changed)}",
            fix="Restore what it was started with, give --out another folder, or start over with --restart.",
        )


class MetricsFile:
    """Appends to metrics.jsonl, a JSON object per logged step; entries after the resumed checkpoint are dropped."""

    def __init__(self, folder: Path, last_step: int) -> None:
        self.path = folder / METRICS
        self.entries = [entry for entry in read_metrics(folder) if entry["step"] <= last_step]
        with replacing(self.path) as beside:
            beside.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        with self.path.open("a") as f:
            f.write(json.dumps(entry) + "\n")

    def sync(self) -> None:
        """Wait until the entries are on the disk: a power cut must not take those before a checkpoint."""
        files.sync(self.path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's metrics.jsonl up to the first damaged line, none when it is absent.

    The last line may be incomplete: after a kill, or while a run is writing it.
    """
    file = folder / METRICS
    entries: list[dict[str, Any]] = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or not UTF-8
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            break
        entries.append(entry)
    return entries
