"""Which figures a table shows, and how they are said: fractions in per cent, arrows where less is better."""

from __future__ import annotations

from typing import Any

from .plan import Plan

LOWER_IS_BETTER = {"frechet distance", "fid"}
SMALL = {"clip", "vqa"}
"""means of numbers below 1: told by four digits, as the paper does"""
PLAIN = {"inception score", "is", "is deviation"} | SMALL | LOWER_IS_BETTER
"""figures that are no fractions of pictures"""


def shown(plan: Plan, result: dict[str, Any]) -> list[str]:
    """The figures that the table has: those that the score file names and that are there, else all."""
    found = list(dict.fromkeys(name for line in result["lines"] for name in line["figures"]))
    return [name for name in plan.score.show if name in found] or found


def kind(figure: str) -> str:
    """Of a figure that is no fraction its name without the part's: "unseen frechet distance" -> "frechet distance"."""
    return next((name for name in sorted(PLAIN) if figure.endswith(f" {name}")), figure)


def unit(figure: str) -> str:
    """What stands behind a figure's name."""
    if kind(figure) in LOWER_IS_BETTER:
        return " ↓"
    return "" if kind(figure) in PLAIN else ", %"


def scaled(figure: str, value: float) -> float:
    """Fractions in per cent."""
    return value if kind(figure) in PLAIN else 100 * value


def with_spread(figure: str, mean: float, lowest: float, highest: float) -> str:
    """For a table: the mean, and the spread where there is one."""
    digits = 4 if kind(figure) in SMALL else 2 if kind(figure) in PLAIN else 0
    mean, low, high = (scaled(figure, value) for value in (mean, lowest, highest))
    return f"{mean:.{max(1, digits)}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low != high else "")
