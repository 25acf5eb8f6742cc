"""From readings to scores: which metrics there are, what each needs, and when pictures are too few for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256

from .frechet import Statistics, frechet_distance, inception_score
from .inception import FEATURES, HOW_TO_GET
from .networks import PIPELINE, Name, Network, open_network
from .reference import Progress, open_reference
from .scores import scores_of_readings

METRICS: dict[str, Name] = {"fid": "inception", "is": "inception", "clip": "clip", "vqa": "vqa", "judge": "judge"}
"""a metric and the network that reads for it"""
LOWER_IS_BETTER = ("validation", "fid", "judge.frechet_distance")
FIGURES = {"validation": "validation", "fid": "fid", "judge": "judge.all"}
"""what recipe.evaluate.score calls by a word -> the figure in metrics.jsonl"""
JUDGE_REFERENCE = "reference.safetensors"
FEW = 10_000
"""below, an FID depends on how many pictures there were more than on what they show"""
SPLITS, SHUFFLED_BY = 10, 2020
"""of the inception score, as torch-fidelity takes it: parts, and the seed of the order before they are made"""
Readings = dict[Name, dict[str, Tensor]]


def better(figure: str, new: float, old: float) -> bool:
    """Is `new` the better value of this figure?"""
    return new < old if figure in LOWER_IS_BETTER else new > old


@dataclass(frozen=True)
class Weights:
    """What lies where: Inception's weights, folders of a CLIP model, a BLIP model that answers questions and a judge,
    and the FID's reference. noun_phrases: the name or the folder of a pipeline of spaCy's, for vqa.
    """

    inception: Path | None = None
    clip: Path | None = None
    vqa: Path | None = None
    judge: Path | None = None
    reference: Path | None = None
    noun_phrases: Path = PIPELINE

    def lacks(self, metric: str) -> str | None:
        """What must be named for this metric, and how; None when it can be had."""
        if metric == "fid" and self.inception and not self.reference:
            return "a reference: --reference with a folder of real pictures, or their statistics"
        if getattr(self, METRICS[metric]) is not None:
            return None
        return {
            "inception": "the weights of Inception-v3: --inception inception.safetensors. " + HOW_TO_GET,
            "clip": "a CLIP model: --clip with a folder in transformers' layout (the paper: ViT-g/14 of OpenCLIP)",
            "vqa": "a BLIP model that answers questions: --vqa with a folder in transformers' layout",
            "judge": "a judge: a folder judge/ in the teacher's, or --judge with one",
        }[METRICS[metric]]


def choose_metrics(asked: Sequence[str], weights: Weights) -> list[str]:
    """The metrics asked for, or all that can be had. Raises RcdeployError that says which weights to name."""
    for metric in asked:
        if metric not in METRICS:
            raise RcdeployError(f"there is no metric {metric!r}", fix=f"There are {', '.join(METRICS)}.")
        if missing := weights.lacks(metric):
            raise RcdeployError(f"{metric} needs {missing.partition('. ')[0]}", fix=missing.partition(". ")[2] or None)
    found = list(dict.fromkeys(asked)) or [metric for metric in METRICS if weights.lacks(metric) is None]
    if not found:
        needs = "\n".join(f"  {m}: {str(weights.lacks(m)).partition('. ')[0]}" for m in METRICS)
        raise RcdeployError(f"no metric can be had without weights:\n{needs}", fix=HOW_TO_GET)
    return found


def refuse_too_few(metrics: Sequence[str], counts: dict[str, int], allow_few: bool) -> list[str]:
    """counts: pictures by the name of their part. Returns remarks; raises RcdeployError where an FID would be noise."""
    if "fid" not in metrics:
        return []
    part, n = min(counts.items(), key=lambda item: item[1])
    if n <= FEATURES and not allow_few:
        where = "" if part == "all" else f" ({part})"
        raise RcdeployError(
            f"{n:,} pictures{where} are too few for an FID of {FEATURES:,} features: their covariance is singular",
            fix=f"Draw at least {FEATURES + 1:,} (--count; the paper: 30,000), leave fid out of --metrics, or take the "
            "number as it comes with --allow-few.",
        )
    return [f"FID of {n:,} pictures: below {FEW:,} it depends much on their number"] if n < FEW else []


@dataclass(frozen=True)
class Scorer:
    """Networks that read, and what their readings are compared with. record: for repeating it, digests included."""

    metrics: tuple[str, ...]
    networks: dict[Name, Network]
    reference: Statistics | None
    judge_reference: Statistics | None
    record: dict[str, Any]
    allow_few: bool = False

    def scores(
        self, readings: Readings, prompts: Sequence[str], chosen: Sequence[bool] | None = None
    ) -> dict[str, float]:
        """readings: of all networks, rows as the prompts are. chosen: which rows count; all by default."""
        rows = torch.tensor(chosen if chosen is not None else [True] * len(prompts)).nonzero().flatten()
        taken = {n: {k: v[rows] for k, v in parts.items()} for n, parts in readings.items()}
        asked, found = [prompts[i] for i in rows.tolist()], {}  # type: tuple[list[str], dict[str, float]]
        if "fid" in self.metrics and self.reference is not None:
            found["fid"] = frechet_distance(Statistics.of(taken["inception"]["features"]), self.reference)
        if "is" in self.metrics:
            order = torch.from_numpy(np.random.RandomState(SHUFFLED_BY).permutation(len(rows)))
            probabilities = taken["inception"]["logits"].double().softmax(1)[order]
            found["is"], found["is_deviation"] = inception_score(probabilities, min(SPLITS, len(rows)))
        if "clip" in self.metrics:
            found["clip"] = taken["clip"]["similarity"].double().mean().item()
        if "vqa" in self.metrics:
            found["vqa"] = taken["vqa"]["yes"].double().mean().item()
        if "judge" in self.metrics:
            found |= {f"judge.{name}": value for name, value in self._judged(taken["judge"], asked).items()}
        return {name: float(f"{value:.6g}") for name, value in found.items()}

    def left_out(self, counts: dict[str, int]) -> list[str]:
        """Remarks on parts of so many pictures that are too few for the judge's Frechet distance."""
        if self.judge_reference is None or self.allow_few:
            return []
        d = len(self.judge_reference.mean)
        parts = [part for part, n in counts.items() if n <= d]
        return [f"no judge.frechet_distance of {', '.join(parts)}: it takes more than {d} pictures"] if parts else []

    def _judged(self, readings: dict[str, Tensor], prompts: list[str]) -> dict[str, float]:
        judge, features = self.networks["judge"].judge, readings["features"]
        assert judge is not None
        enough = len(features) > features.shape[1] or self.allow_few
        logits = {name.removeprefix("logits."): v for name, v in readings.items() if name.startswith("logits.")}
        return scores_of_readings(judge, features, logits, prompts, self.judge_reference if enough else None)


def open_scorer(
    metrics: Sequence[str],
    weights: Weights,
    *,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    allow_few: bool = False,
    progress: Progress = lambda *_: None,
) -> Scorer:
    """size: (height, width) of the pictures to score, which a folder of reference pictures is brought to."""
    names = dict.fromkeys(METRICS[metric] for metric in metrics)
    phrases = weights.noun_phrases
    networks = {name: open_network(name, getattr(weights, name), device, noun_phrases=phrases) for name in names}
    record: dict[str, Any] = {n: {"path": str(net.path), "sha256": net.digest} for n, net in networks.items()}
    if "vqa" in networks:
        record["vqa"]["noun_phrases"] = networks["vqa"].asks
    reference = judge_reference = None
    if "fid" in metrics and weights.reference:
        reference, digest = open_reference(weights.reference, networks["inception"], size, progress)
        if len(reference.mean) != FEATURES:
            raise RcdeployError(
                f"{weights.reference} is of {len(reference.mean)} features, Inception-v3 has {FEATURES:,}",
                fix="Give a folder of pictures, or the statistics of Inception's last pool.",
            )
        record["reference"] = {"path": str(weights.reference), "sha256": digest, "count": reference.count}
    if "judge" in networks and (file := networks["judge"].path / JUDGE_REFERENCE).is_file():
        judge_reference = Statistics.load(file)
        record["judge_reference"] = {"path": str(file), "sha256": sha256(file), "count": judge_reference.count}
    return Scorer(tuple(metrics), networks, reference, judge_reference, record, allow_few)
