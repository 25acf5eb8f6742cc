"""Which differences between a table's variants and its baseline are more than chance.

A difference is called one only if two tests agree. Paired by caption: exact McNemar for shares of images, a bootstrap
over captions for means and Frechet distances, both over all seeds together. Clustered by seed: a t test of the seeds'
paired differences, because images of one student are not independent. Its p is the larger of the two, corrected by
Holm's method for the number of variants. With one seed nothing is called a difference.

Of trials that only an earlier table knows there are scores and no outputs: they have the t test alone, and are marked
apart.
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
from ..evaluate.spec import COMPBENCH
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
    for category, scores in outputs.get(COMPBENCH, {}).items():
        values[f"{COMPBENCH}.{category}"] = CaptionValues(scores[rows].double())
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


@dataclass(frozen=True)
class Tested:
    """By metric, for a variant and the baseline: the seeds' differences, and p of both tests or, without
    `by_caption`, of the t test alone; not corrected."""

    seeds: int
    differences: dict[str, list[float]]
    p: dict[str, float]
    by_caption: bool


def compare(plan: Plan, scores: TrialScores) -> dict[str, Any] | None:
    """Differences of every variant from the baseline, as JSON: {"baseline", "significance", "lines": [...]}.

    Both tests for variants with MIN_SEEDS seeds whose network outputs are here; else the t test of the scores, with
    "by_caption": false in the line. None with fewer than MIN_SEEDS seeds.
    """
    baseline = plan.baseline
    stored: dict[str, dict[str, CaptionValues]] = {}

    def values_of(trial: Trial) -> dict[str, CaptionValues]:
        if trial.key not in stored:
            stored[trial.key] = _values_by_table_name(scores, trial)
        return stored[trial.key]

    def scores_of(trial: Trial) -> dict[str, float]:
        known = plan.known_result(trial)
        return known["scores"] if known else scores(trial)

    tested: dict[str, Tested] = {}
    for variant in plan.variants:
        trials = list(zip(baseline.trials, variant.trials, strict=True))
        with_outputs = [pair for pair in trials if all(map(scores.has_outputs, pair))]
        with_scores = [pair for pair in trials if all(map(plan.is_done, pair))]
        if variant is baseline or len(with_scores) < MIN_SEEDS:
            continue
        if len(with_outputs) >= MIN_SEEDS:
            tested[variant.label] = _by_both([(values_of(a), values_of(b)) for a, b in with_outputs])
        else:
            tested[variant.label] = _by_seed([(scores_of(a), scores_of(b)) for a, b in with_scores])
    if not tested:
        return None
    corrected = _corrected(tested)
    lines = [_row(label, test, corrected[label]) for label, test in tested.items()]
    return {"baseline": baseline.label, "significance": SIGNIFICANCE, "lines": lines}


def _by_both(seeds: Seeds) -> Tested:
    first = seeds[0][0]
    metrics = [m for m in first if all(m in baseline and m in variant for baseline, variant in seeds)]
    differences = {m: [variant[m].metric() - baseline[m].metric() for baseline, variant in seeds] for m in metrics}
    p = {m: paired_p([(baseline[m], variant[m]) for baseline, variant in seeds]) for m in metrics}
    return Tested(len(seeds), differences, p, by_caption=True)


def _by_seed(seeds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Tested:
    first = seeds[0][0]
    metrics = [m for m in first if all(m in baseline and m in variant for baseline, variant in seeds)]
    differences = {m: [variant[m] - baseline[m] for baseline, variant in seeds] for m in metrics}
    return Tested(len(seeds), differences, {m: t_test(d) for m, d in differences.items()}, by_caption=False)


def _values_by_table_name(scores: TrialScores, trial: Trial) -> dict[str, CaptionValues]:
    scorer, outputs = scores.outputs(trial)
    return {
        scores.table_name(part, metric): values
        for part, selected in scores.parts.items()
        for metric, values in caption_values(scorer, outputs, scores.prompts, selected).items()
    }


def _corrected(tested: Mapping[str, Tested]) -> dict[str, dict[str, float]]:
    """For each variant, p by metric, corrected for the number of variants."""
    corrected: dict[str, dict[str, float]] = {label: {} for label in tested}
    for metric in dict.fromkeys(metric for test in tested.values() for metric in test.p):
        for label, p in holm({label: t.p[metric] for label, t in tested.items() if metric in t.p}).items():
            corrected[label][metric] = p
    return corrected


def _row(label: str, test: Tested, p_values: dict[str, float]) -> dict[str, Any]:
    metrics = {
        metric: {"difference": float(f"{np.mean(test.differences[metric]):.6g}"), "p": float(f"{p:.4g}")}
        for metric, p in p_values.items()
    }
    return {
        "label": label,
        "seeds": test.seeds,
        **({} if test.by_caption else {"by_caption": False}),
        "figures": metrics,
    }


def differing(comparison: Mapping[str, Any] | None, *, by_caption: bool = True) -> set[tuple[str, str]]:
    """(label, metric) of the differences from the baseline that both tests confirm; by_caption=False: of those for
    which there is the t test alone."""
    if comparison is None:
        return set()
    return {
        (row["label"], metric)
        for row in comparison["lines"]
        if row.get("by_caption", True) == by_caption
        for metric, entry in row["figures"].items()
        if entry["p"] < comparison["significance"]
    }
