"""Metrics from network outputs: FID, inception score, CLIP score, BLIP-VQA, T2I-CompBench, and those of a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256

from ..progress import Progress, no_progress
from ..recipe_checks import INCEPTION_FEATURES
from .compbench import compbench_scores
from .compbench_prompts import CompbenchPrompts
from .frechet import Statistics, frechet_distance, inception_score
from .judge import Judge, scores_of_outputs
from .networks import Network, open_compbench, open_network
from .reference import open_reference
from .spec import COMPBENCH, METRICS, EvaluationSpec, NetworkName

JUDGE_REFERENCE = "reference.safetensors"
INCEPTION_SCORE_SPLITS = 10
INCEPTION_SCORE_SHUFFLE_SEED = 2020
"""both as in torch-fidelity: the number of parts, and the seed of the order before the split"""
Outputs = Mapping[NetworkName, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Scorer:
    """Networks, references, and how metrics are computed from the networks' outputs.

    record: paths and digests of everything used, as JSON.
    """

    metrics: tuple[str, ...]
    networks: dict[NetworkName, Network]
    reference: Statistics | None
    judge_reference: Statistics | None
    record: dict[str, Any]
    allow_few: bool = False

    @property
    def judge(self) -> Judge | None:
        return self.networks["judge"].judge if "judge" in self.networks else None

    def scores(
        self, outputs: Outputs, prompts: Sequence[str], selected: Sequence[bool] | None = None
    ) -> dict[str, float]:
        """outputs: of all networks, a row for each prompt. selected: the rows that count; all by default."""
        if selected is not None:
            rows = torch.tensor(selected).nonzero().flatten()
            outputs = {name: {key: v[rows] for key, v in tensors.items()} for name, tensors in outputs.items()}
            prompts = [prompts[i] for i in rows.tolist()]
        scores: dict[str, float] = {}
        if "fid" in self.metrics and self.reference is not None:
            scores["fid"] = frechet_distance(Statistics.of(outputs["inception"]["features"]), self.reference)
        if "is" in self.metrics:
            order = np.random.RandomState(INCEPTION_SCORE_SHUFFLE_SEED).permutation(len(prompts))
            probabilities = outputs["inception"]["logits"].double().softmax(1)[torch.from_numpy(order)]
            splits = min(INCEPTION_SCORE_SPLITS, len(prompts))
            scores["is"], scores["is_deviation"] = inception_score(probabilities, splits)
        if "clip" in self.metrics:
            scores["clip"] = outputs["clip"]["similarity"].double().mean().item()
        if "vqa" in self.metrics:
            scores["vqa"] = outputs["vqa"]["yes"].double().mean().item()
        if COMPBENCH in self.metrics:
            scores |= {f"{COMPBENCH}.{k}": v for k, v in compbench_scores(outputs[COMPBENCH]).items()}
        if "judge" in self.metrics:
            scores |= {f"judge.{k}": v for k, v in self._judge_scores(outputs["judge"], prompts).items()}
        return {name: float(f"{value:.6g}") for name, value in scores.items()}

    def omitted(self, counts: Mapping[str, int]) -> list[str]:
        """Remarks on parts whose images are too few for the judge's Frechet distance; counts: images of each part."""
        if self.judge_reference is None or self.allow_few:
            return []
        features = len(self.judge_reference.mean)
        parts = ", ".join(part for part, n in counts.items() if n <= features)
        return [f"judge.frechet_distance is omitted for {parts}: it needs more than {features} images"] if parts else []

    def _judge_scores(self, outputs: Mapping[str, Tensor], prompts: Sequence[str]) -> dict[str, float]:
        assert self.judge is not None
        features = outputs["features"]
        enough = len(features) > features.shape[1] or self.allow_few
        return scores_of_outputs(
            self.judge, features, judge_logits(outputs), prompts, self.judge_reference if enough else None
        )


def judge_logits(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A judge's logits by attribute, from its stored outputs."""
    return {name.removeprefix("logits."): v for name, v in outputs.items() if name.startswith("logits.")}


def open_scorer(
    spec: EvaluationSpec,
    *,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> Scorer:
    """Loads the networks and references of the spec's metrics.

    size: (height, width) of the scored images, to which reference images are resized. Raises RcdeployError for weights
    or references that are missing or do not fit.
    """
    metrics = spec.selected_metrics()
    networks: dict[NetworkName, Network] = {}
    for name in dict.fromkeys(METRICS[metric] for metric in metrics):
        paths = {part: path for part in spec.parts_of(name) if (path := spec.weights_of(part))}
        if name == COMPBENCH:
            prompts = CompbenchPrompts.read(spec.prompt_files, spec.column)
            networks[name] = open_compbench(paths, prompts, device, spec.noun_phrases)
        else:
            networks[name] = open_network(name, paths[name], device, noun_phrases=spec.noun_phrases)
    record: dict[str, Any] = {name: network.record for name, network in networks.items()}
    reference = judge_reference = None
    if "fid" in metrics and spec.reference:
        reference, digest = open_reference(spec.reference, networks["inception"], size, progress)
        if len(reference.mean) != INCEPTION_FEATURES:
            raise RcdeployError(
                f"{spec.reference} has statistics of {len(reference.mean)} features, not of {INCEPTION_FEATURES:,}",
                fix="Give a folder of images, or the statistics of Inception's last pool.",
            )
        record["reference"] = {"path": str(spec.reference), "sha256": digest, "count": reference.count}
    if "judge" in networks and (file := networks["judge"].path / JUDGE_REFERENCE).is_file():
        judge_reference = Statistics.load(file)
        record["judge_reference"] = {"path": str(file), "sha256": sha256(file), "count": judge_reference.count}
    return Scorer(tuple(metrics), networks, reference, judge_reference, record, spec.allow_few)
