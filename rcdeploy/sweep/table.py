"""The table of a sweep: JSON with every trial, Markdown with means and spreads beside the paper's values."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rcdeploy_runtime.files import replacing, write_json

from .comparison import differing
from .metric_format import table_metrics, unit, with_spread
from .plan import Plan
from .plot import plot
from .protocol import protocol, sentences
from .trial import Trial

MARK = " ✱"
"""behind a value that differs from the baseline"""
MARK_BY_SEED = " †"
"""behind one that differs by the t test of the seeds alone: its images are not here"""
Score = Callable[[Trial], dict[str, float]]


def collect(plan: Plan, score: Score, comparison: dict[str, Any] | None = None) -> dict[str, Any]:
    """The result of a sweep as JSON, from the trials that are done; comparison: as `compare` returns it."""
    rows = [_row("teacher", {}, [plan.teacher], plan, score)]
    rows += [_row(variant.label, variant.set, variant.trials, plan, score) for variant in plan.variants]
    return {
        "sweep": plan.name,
        "title": plan.sweep.title,
        "recipe": plan.teacher.recipe.name,
        "seeds": plan.sweep.seeds,
        "pictures": plan.score.count,
        "scored_by": plan.scored_by,
        "lines": rows,
        "protocol": protocol(plan),
        "paper": plan.sweep.paper.model_dump() if plan.sweep.paper else None,
        "note": plan.sweep.note,
        **({"comparison": comparison} if comparison else {}),
    }


def _row(label: str, keys: dict[str, Any], trials: Sequence[Trial], plan: Plan, score: Score) -> dict[str, Any]:
    results: list[dict[str, Any]] = [
        plan.known_result(trial)
        or {
            "seed": trial.seed,
            "key": trial.key,
            "train_minutes": round(trial.train_seconds / 60, 3),
            "scores": score(trial),
        }
        for trial in trials
        if plan.is_done(trial)
    ]
    metrics = {}
    for name in dict.fromkeys(name for result in results for name in result["scores"]):
        values = [result["scores"][name] for result in results if name in result["scores"]]
        metrics[name] = {"mean": statistics.mean(values), "lowest": min(values), "highest": max(values)}
    return {"label": label, "set": keys, "cells": results, "missing": len(trials) - len(results), "figures": metrics}


def markdown(plan: Plan, result: dict[str, Any], command: str) -> str:
    """Means over seeds with lowest and highest, the paper's values, the command, what the table does not show."""
    paper = plan.sweep.paper
    missing = sum(row["missing"] for row in result["lines"])
    seeds = len(plan.sweep.seeds)
    minutes = [trial["train_minutes"] for row in result["lines"][1:] for trial in row["cells"]]
    summary = f"Means of {seeds} seeds, lowest to highest in brackets; " if seeds > 1 else "One seed; "
    summary += f"{plan.score.count:,} images a student."
    if minutes:
        summary += f" {statistics.median(minutes):.2g} minutes of training a student, in the median."
    paragraphs = [f"# {plan.sweep.title}", _table(plan, result), summary]
    if result.get("protocol"):
        paragraphs.append(sentences(result["protocol"], seeds))
    if result.get("comparison"):
        paragraphs.append(_tests(result["comparison"]))
    if missing:
        paragraphs.append(f"**{missing} of {seeds * len(plan.variants) + 1} trials are not done.**")
    paragraphs.append(f"Command: `{command}`")
    if paper:
        paragraphs.append(f"The paper's values: {paper.source}")
    paragraphs.append(f"What it does not show: {plan.sweep.note.strip()}")
    return "\n\n".join(paragraphs) + "\n"


def _table(plan: Plan, result: dict[str, Any]) -> str:
    paper = plan.sweep.paper
    metrics = table_metrics(plan, result)
    columns = paper.columns if paper else []
    header = ["", *(f"{metric}{unit(metric)}" for metric in metrics), *(f"paper: {column}" for column in columns)]
    rows = [header]
    marked = differing(result.get("comparison"))
    marked_by_seed = differing(result.get("comparison"), by_caption=False)
    for row in result["lines"]:
        values = [with_spread(m, **row["figures"][m]) if m in row["figures"] else "" for m in metrics]
        places = [(row["label"], m) for m in metrics]
        values = [v + MARK * (p in marked) for v, p in zip(values, places, strict=True)]
        values = [v + MARK_BY_SEED * (p in marked_by_seed) for v, p in zip(values, places, strict=True)]
        theirs = paper.rows.get(row["label"], []) if paper else []
        rows.append([row["label"], *values, *(map(_paper_value, theirs) if theirs else [""] * len(columns))])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---|" * (len(header) - 1))
    return "\n".join(lines)


def _tests(comparison: dict[str, Any]) -> str:
    """The paragraph that says what the marks mean."""
    baseline, significance = comparison["baseline"], comparison["significance"]
    both = sorted({row["seeds"] for row in comparison["lines"] if row.get("by_caption", True)})
    by_seed = sorted({row["seeds"] for row in comparison["lines"] if not row.get("by_caption", True)})
    paragraph = []
    if both:
        paragraph.append(
            f'{MARK.strip()} differs from "{baseline}" (p < {significance}, Holm): by the test paired by caption '
            "(exact McNemar for shares, bootstrap for means and Frechet distances) and by the t test of the "
            f"differences of {_counts(both)} seeds."
        )
    if by_seed:
        paragraph.append(
            f'{MARK_BY_SEED.strip()} differs from "{baseline}" by the t test of the differences of {_counts(by_seed)} '
            f"seeds alone (p < {significance}, Holm): the images of these trials are not here, so nothing was tested "
            "by caption."
        )
    return " ".join([*paragraph, "Without a mark no difference is shown."])


def _counts(seeds: Sequence[int]) -> str:
    return " to ".join(map(str, seeds))


def _paper_value(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def write(plan: Plan, result: dict[str, Any], out: Path, command: str) -> list[Path]:
    """Writes NAME.json, NAME.md and NAME.png below `out`, and returns their paths."""
    paths = [out / f"{plan.name}{extension}" for extension in (".json", ".md", ".png")]
    write_json(paths[0], {**result, "command": command})
    with replacing(paths[1]) as temporary:
        temporary.write_text(markdown(plan, result, command), encoding="utf-8")
    plot(plan, result, paths[2])
    return paths
