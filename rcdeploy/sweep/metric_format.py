"""Which metrics a table shows and how: fractions in per cent, arrows where lower is better."""

from __future__ import annotations

from typing import Any

from ..evaluate.compbench_prompts import CATEGORIES
from ..evaluate.spec import COMPBENCH
from .plan import Plan

LOWER_IS_BETTER = {"frechet distance", "fid"}
FOUR_DIGITS = {"clip", "vqa", *(f"{COMPBENCH}.{category}" for category in (*CATEGORIES, "average"))}
"""means of numbers below 1: formatted with four digits, as in the paper"""
NOT_FRACTIONS = {"inception score", "is", "is deviation"} | FOUR_DIGITS | LOWER_IS_BETTER
"""all other metrics are fractions of images"""


def table_metrics(plan: Plan, result: dict[str, Any]) -> list[str]:
    """The metrics of the table: those that the score file names and that exist, else all."""
    metrics = list(dict.fromkeys(name for row in result["lines"] for name in row["figures"]))
    return [name for name in plan.score.show if name in metrics] or metrics


def kind(metric: str) -> str:
    """Of a metric that is no fraction, its name without the part's: "unseen frechet distance" -> "frechet distance"."""
    return next((name for name in sorted(NOT_FRACTIONS) if metric.endswith(f" {name}")), metric)


def unit(metric: str) -> str:
    """The suffix of a metric's heading."""
    if kind(metric) in LOWER_IS_BETTER:
        return " ↓"
    return "" if kind(metric) in NOT_FRACTIONS else ", %"


def scaled(metric: str, value: float) -> float:
    """Fractions in per cent."""
    return value if kind(metric) in NOT_FRACTIONS else 100 * value


def with_spread(metric: str, mean: float, lowest: float, highest: float) -> str:
    """The mean, with lowest and highest in brackets where they differ."""
    digits = 4 if kind(metric) in FOUR_DIGITS else 2 if kind(metric) in NOT_FRACTIONS else 0
    mean, low, high = (scaled(metric, value) for value in (mean, lowest, highest))
    return f"{mean:.{max(1, digits)}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low != high else "")
