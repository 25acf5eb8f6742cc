"""Which differences between a table's variants and its baseline are more than chance.

A difference is called one only if two tests agree. Paired by caption: exact McNemar for shares of images, a bootstrap
over captions for means and Frechet distances, both over all seeds together. Clustered by seed: a t test of the seeds'
paired differences, because images of one student are not independent. Its p is the larger of the two, corrected by
Holm's method for the number of variants. With one seed nothing is called a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluate.frechet import Statistics, frechet_distance
from ..evaluate.judge import correctness
from ..evaluate.metrics import Outputs, Scorer, judge_logits
from .plan import Plan
from .scores import TrialScores
from .statistics_tests import bootstrap, holm, mcnemar, t_test
from .trial import Trial

SIGNIFICANCE = 0.05
MIN_SEEDS = 2
MAX_BOOTSTRAP_FEATURES = 512
"""a Frechet distance of more features (Inception's) takes too long to resample: it is not tested"""


@dataclass(frozen=True)
class CaptionValues:
    """The data that a metric is computed from, a row for each caption of a part.

    values: [n] of which the metric is the mean, NaN where a caption does not count; or features [n, d], with the
    reference of their Frechet distance. is_share: the values are 0 and 1.
    """

    values: Tensor
    is_share: bool = False
    reference: Statistics | None = None

    def metric(self, rows: np.ndarray | None = None) -> float:
        """The metric of these rows, by default of all."""
        values = self.values if rows is None else self.values[torch.from_numpy(rows)]
        if self.reference is not None:
            return frechet_distance(Statistics.of(values), self.reference)
        return float(values.nanmean())


Seeds = list[tuple[dict[str, CaptionValues], dict[str, CaptionValues]]]
"""(baseline, variant) of each seed, by metric"""


def caption_values(
    scorer: Scorer, outputs: Outputs, prompts: Sequence[str], selected: Sequence[bool]
) -> dict[str, CaptionValues]:
    """By metric, named as in scores; those that are no mean over captions and no Frechet distance are left out."""
    rows = torch.tensor(selected).nonzero().flatten()
    prompts = [prompts[i] for i in rows.tolist()]
    values = {}
    if "clip" in outputs:
        values["clip"] = CaptionValues(outputs["clip"]["similarity"][rows].double())
    if "vqa" in outputs:
        values["vqa"] = CaptionValues(outputs["vqa"]["yes"][rows].double())
    if scorer.judge is not None:
        judge = {name: tensor[rows] for name, tensor in outputs["judge"].items()}
        shares = correctness(scorer.judge, judge_logits(judge), prompts)
        values |= {f"judge.{name}": CaptionValues(share, is_share=True) for name, share in shares.items()}
        features, reference = judge["features"], scorer.judge_reference
        enough = scorer.allow_few or len(features) > features.shape[1]
        if reference is not None and enough and features.shape[1] <= MAX_BOOTSTRAP_FEATURES:
            values["judge.frechet_distance"] = CaptionValues(features, reference=reference)
    return values


def paired_p(pairs: Sequence[tuple[CaptionValues, CaptionValues]]) -> float:
    """p of no difference between two variants; pairs: (baseline, variant) of each seed, for the same captions."""
    by_caption = _p_by_caption(pairs)
    by_seed = t_test([variant.metric() - baseline.metric() for baseline, variant in pairs])
    return max(by_caption, by_seed)


def _p_by_caption(pairs: Sequence[tuple[CaptionValues, CaptionValues]]) -> float:
    if all(baseline.is_share for baseline, _ in pairs):
        counted = [~baseline.values.isnan().numpy() for baseline, _ in pairs]
        baselines = np.concatenate([b.values.numpy()[c] == 1 for (b, _), c in zip(pairs, counted, strict=True)])
        variants = np.concatenate([v.values.numpy()[c] == 1 for (_, v), c in zip(pairs, counted, strict=True)])
        return mcnemar(baselines, variants)

    def difference(rows: np.ndarray) -> float:
        return float(np.mean([variant.metric(rows) - baseline.metric(rows) for baseline, variant in pairs]))

    return bootstrap(difference, len(pairs[0][0].values))


def compare(plan: Plan, scores: TrialScores) -> dict[str, Any] | None:
    """Differences of every variant from the baseline, as JSON: {"baseline", "significance", "lines": [...]}.

    Only seeds whose network outputs are here for both count. None with fewer than MIN_SEEDS seeds.
    """
    baseline = plan.baseline
    stored: dict[str, dict[str, CaptionValues]] = {}

    def values_of(trial: Trial) -> dict[str, CaptionValues]:
        if trial.key not in stored:
            stored[trial.key] = _values_by_table_name(scores, trial)
        return stored[trial.key]

    pairs = {}
    for variant in plan.variants:
        seeds = [
            (values_of(a), values_of(b))
            for a, b in zip(baseline.trials, variant.trials, strict=True)
            if scores.has_outputs(a) and scores.has_outputs(b)
        ]
        if variant is not baseline and len(seeds) >= MIN_SEEDS:
            pairs[variant.label] = seeds
    if not pairs:
        return None
    return {
        "baseline": baseline.label,
        "significance": SIGNIFICANCE,
        "lines": [_row(label, seeds, p) for (label, seeds), p in zip(pairs.items(), _p_values(pairs), strict=True)],
    }


def _values_by_table_name(scores: TrialScores, trial: Trial) -> dict[str, CaptionValues]:
    scorer, outputs = scores.outputs(trial)
    return {
        scores.table_name(part, metric): values
        for part, selected in scores.parts.items()
        for metric, values in caption_values(scorer, outputs, scores.prompts, selected).items()
    }


def _p_values(pairs: Mapping[str, Seeds]) -> list[dict[str, float]]:
    """For each variant, p by metric, corrected for the number of variants."""
    first = next(iter(pairs.values()))
    corrected: list[dict[str, float]] = [{} for _ in pairs]
    for metric in first[0][0]:
        p = {
            place: paired_p([(baseline[metric], variant[metric]) for baseline, variant in seeds])
            for place, seeds in enumerate(pairs.values())
            if all(metric in baseline and metric in variant for baseline, variant in seeds)
        }
        for place, value in holm(p).items():
            corrected[place][metric] = value
    return corrected


def _row(label: str, seeds: Seeds, p_values: dict[str, float]) -> dict[str, Any]:
    metrics = {}
    for metric, p in p_values.items():
        differences = [variant[metric].metric() - baseline[metric].metric() for baseline, variant in seeds]
        metrics[metric] = {"difference": float(f"{np.mean(differences):.6g}"), "p": float(f"{p:.4g}")}
    return {"label": label, "seeds": len(seeds), "figures": metrics}


def differing(comparison: Mapping[str, Any] | None) -> set[tuple[str, str]]:
    """(label, metric) of the differences from the baseline that both tests confirm."""
    if comparison is None:
        return set()
    return {
        (row["label"], metric)
        for row in comparison["lines"]
        for metric, entry in row["figures"].items()
        if entry["p"] < comparison["significance"]
    }
