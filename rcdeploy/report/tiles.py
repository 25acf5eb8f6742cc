"""The key figures at the top of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..units import bytes_text
from .evaluations import EvaluationScores, metric_title, score_text
from .run_data import RunData

Tile = dict[str, str]
"""label, value, detail"""
SCORE_TITLES = {"validation": "Validation loss", "fid": "FID", "judge.all": "Judged right, of 1"}
"""what the page calls the metric that decides which step is best"""
HEADLINE_METRICS = ("fid", "judge.all", "clip", "vqa")
"""of an evaluation, the first that it has"""


def tiles(data: RunData, bars: list[dict[str, Any]], evaluations: Sequence[tuple[str, EvaluationScores]]) -> list[Tile]:
    """The student's share of each cost, its training and scores, the package's size and error."""
    return [
        *_cost_tiles(bars),
        *_training_tiles(data),
        *_score_tiles(evaluations),
        *_package_tiles(data),
    ]


def _cost_tiles(bars: list[dict[str, Any]]) -> list[Tile]:
    tiles = []
    for group in bars:
        rows = {row["name"]: row for row in group["rows"]}
        if group["key"] in ("parameters", "macs") and (row := rows.get("student")):
            share = f"{100 * row['share']:.1f} % of the teacher's" if row["share"] is not None else ""
            tiles.append({"label": group["title"].partition(",")[0], "value": row["text"], "detail": share})
    return tiles


def _training_tiles(data: RunData) -> list[Tile]:
    seconds = [m["seconds_per_step"] for m in data.metrics if "seconds_per_step" in m]
    pace = f"{np.median(seconds):.3g} s each" if seconds else ""
    tiles = [{"label": "Training steps", "value": f"{data.step:,}", "detail": pace}]
    if best := data.best:
        detail = f"at step {best['step']:,}, the best one"
        tiles.append({"label": SCORE_TITLES[data.score], "value": f"{best[data.score]:#.4g}", "detail": detail})
    return tiles


def _score_tiles(evaluations: Sequence[tuple[str, EvaluationScores]]) -> list[Tile]:
    """The headline metric of the student's largest evaluation, else of the package's."""
    for kind, evaluation in evaluations:
        for metric in HEADLINE_METRICS:
            if metric in evaluation.scores:
                title = metric_title(metric)
                detail = f"{kind}, {evaluation.count:,} images"
                return [{"label": title, "value": score_text(evaluation.scores[metric]), "detail": detail}]
    return []


def _package_tiles(data: RunData) -> list[Tile]:
    if data.package is None:
        return []
    manifest = data.package.manifest
    facts = manifest.facts
    worst = max(parity["relative_error"] for parity in facts["parity"])
    return [
        {
            "label": "Package",
            "value": bytes_text(manifest.size_of()),
            "detail": f"{facts['target']}, UNet in {facts['precision']['unet']}",
        },
        {"label": "Largest error", "value": f"{worst:.1e}", "detail": "relative, package against torch"},
    ]
