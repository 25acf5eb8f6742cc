"""Scores that `rcdeploy evaluate` wrote for a model, found by the digest of its weights."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import Manifest

from ..evaluate.spec import COMPBENCH

EVALUATIONS = "evaluations"
SCORES = "scores.json"
METRIC_TITLES = {
    "fid": "FID",
    "is": "inception score",
    "is_deviation": "its deviation",
    "clip": "CLIP score",
    "vqa": "BLIP-VQA",
}
JUDGE_TITLE = "judge"


@dataclass(frozen=True)
class EvaluationScores:
    """One evaluation of one model.

    Attributes:
        scores: metric -> value, of all images.
        count: images.
        command: what repeats it; files by their names alone.
        networks: what computed the metrics: FID's and CLIP's weights by their names.
    """

    scores: dict[str, float]
    count: int
    command: str
    networks: list[str]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """(title of the metric, value with four digits that matter)"""
        return [(metric_title(name), score_text(value)) for name, value in self.scores.items()]


def find_scores(digests: Collection[str], model: str, places: Sequence[Path]) -> list[EvaluationScores]:
    """Evaluations of a model, those of more images first.

    Args:
        digests: of the model's weights, as evaluate identifies it.
        model: the model's name in the command.
        places: folders that may hold an evaluations/ folder.
    """
    files = {file.resolve() for place in places for file in (place / EVALUATIONS).glob(f"*/{SCORES}")}
    evaluations = [scores for file in sorted(files) if (scores := _read(file, digests, model)) is not None]
    return sorted(evaluations, key=lambda e: -e.count)


def package_digests(manifest: Manifest) -> set[str]:
    """A package as evaluate identifies it; those of rcdeploy 0.1 list their model card once it is written."""
    bare = replace(manifest, files={name: entry for name, entry in manifest.files.items() if name != "README.md"})
    return {manifest.digest, bare.digest}


def metric_title(name: str) -> str:
    """ "judge.item" -> "judge: item"."""
    network, _, what = name.partition(".")
    return f"{network}: {what.replace('_', ' ')}" if what else METRIC_TITLES.get(name, name)


def score_text(value: float) -> str:
    """Four digits that matter: FIDs are tens, similarities are hundredths."""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def _read(file: Path, digests: Collection[str], model: str) -> EvaluationScores | None:
    """None for an evaluation of another model, and for a file that is none."""
    try:
        record = read_json(file)
        if record["identity"]["model"] not in digests:
            return None
        scores = {str(name): float(value) for name, value in record["scores"]["all"].items() if value is not None}
        return EvaluationScores(scores, int(record["counts"]["all"]), _command(record, model), _networks(record))
    except (RcdeployError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _command(record: dict[str, Any], model: str) -> str:
    identity = record["identity"]
    prompts = record.get("prompts", {})
    arguments = ["rcdeploy", "evaluate", model]
    for option, key in (("--prompts", "files"), ("--include", "include"), ("--exclude", "exclude")):
        for value in prompts.get(key) or []:
            arguments += [option, Path(value).name if key == "files" else str(value)]
    repeat = int(prompts.get("repeat") or 1)
    arguments += ["--count", str(int(identity["count"]) // repeat), "--seed", str(identity["seed"])]
    arguments += ["--repeat", str(repeat)] if repeat > 1 else []
    arguments += ["--steps", str(identity["num_inference_steps"])]
    arguments += ["--guidance-scale", f"{identity['guidance_scale']:g}"]
    arguments += ["--sampler", identity["sampler"]] if "sampler" in identity else []
    return shlex.join(arguments)


def _networks(record: dict[str, Any]) -> list[str]:
    weights = dict(record.get("weights", {}))
    parts = weights.pop(COMPBENCH, {})
    weights |= {f"{COMPBENCH}, {name}": entry for name, entry in parts.items() if isinstance(entry, dict)}
    return [f"{name}: {Path(entry['path']).name}" for name, entry in weights.items() if "path" in entry]
