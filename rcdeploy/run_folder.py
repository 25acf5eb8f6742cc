"""The run folder: recipe, manifest, metrics, and whether the same command may go on in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing
from rcdeploy_runtime.manifest import NAME, Manifest

from .recipe import Recipe

METRICS = "metrics.jsonl"

# what a run may change when it goes on: how long, how often it looks, and where things lie (their digests are compared)
FREE = {
    ("train", "max_steps"),
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


def check_unchanged(folder: Path, recipe: Recipe) -> None:
    """Raises RcdeployError that says what differs, when `folder` holds a run of another recipe."""
    if not (folder / NAME).is_file():
        return
    before, now = Manifest.read(folder, "run").recipe, recipe.resolved()
    differ = [
        f"  {section}.{key}: {before.get(section, {}).get(key)} -> {value}"
        for section, keys in now.items()
        if isinstance(keys, dict) and section != "evaluate"
        for key, value in keys.items()
        if (section, key) not in FREE and before.get(section, {}).get(key) != value
    ]
    if differ:
        raise RcdeployError(
            f"{folder} holds a run of another recipe:\n" + "\n".join(differ),
            fix="Give --out another folder, or begin anew with --restart (which removes that run).",
        )


def check_sources(before: Manifest, sources: dict[str, str]) -> None:
    """The teacher, cache and pool by their digests: {"teacher", "latent_cache", "prompt_pool"}."""
    have = {m["kind"]: m["sha256"] for m in before.made_from} | {"teacher": before.teacher.get("revision", "")}
    changed = [name for name, value in sources.items() if have.get(name) != value]
    if changed:
        raise RcdeployError(
            f"the run was begun with another {' and another '.join(changed)}",
            fix="Bring back what it was begun with, give --out another folder, or begin anew with --restart.",
        )


class Metrics:
    """METRICS: a line per logged step. Lines after the checkpoint that a run goes on from are dropped."""

    def __init__(self, folder: Path, last_step: int) -> None:
        self.path = folder / METRICS
        self.lines = [line for line in read_metrics(folder) if line["step"] <= last_step]
        with replacing(self.path) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, entry: dict[str, Any]) -> None:
        self.lines.append(entry)
        with self.path.open("a") as f:
            f.write(json.dumps(entry) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's METRICS, none when it is not there. The last may be half a line: a kill, or a look at
    a run that is writing it.
    """
    file, lines = folder / METRICS, []  # type: tuple[Path, list[dict[str, Any]]]
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
