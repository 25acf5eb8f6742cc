"""A student by its layers: of all combinations of removed parts the one of least predicted error within a budget.

The prediction is the sum of the parts' single errors (layer_error.py). That errors add up is LAPTOP-Diff's finding
(arXiv 2404.11098) and no theorem: the command measures the chosen student beside it. A UNet has so few parts that the
knapsack is solved by trying every combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Literal

from rcdeploy_runtime.errors import RcdeployError

from ..plots import new_figure, save_figure
from ..recipe_student import Student
from ..student.rules import layers_of
from ..student.spec import STUDENTS, fitting_students, student_config
from .budget import Budget, Candidate
from .layer_error import SHALLOWER, Part

MAX_COMBINATIONS = 100_000
MAX_TIMED = 16


def combinations(teacher: Candidate, parts: Sequence[Part]) -> list[Candidate]:
    """Every student that lacks some of the parts and nothing else, least predicted error first.

    Parameters and MACs are sums as well, and exact ones: what a part saves does not depend on the others.

    Raises RcdeployError when there are more than MAX_COMBINATIONS.
    """
    by_key = {part.key: part for part in parts}
    choices = []
    for stage, count in enumerate(layers_of(teacher.config)):
        choices.append([count, *(left for left in range(count - 1, 0, -1) if (stage, left) in by_key)])
    if prod(map(len, choices)) * (1 + len(SHALLOWER)) > MAX_COMBINATIONS:
        raise RcdeployError(f"this teacher's layers have more than {MAX_COMBINATIONS:,} combinations")
    named = fitting_students(teacher.config)
    found = []
    for name in ("b-base", *(name for name in SHALLOWER if name in by_key)):
        stages = choices[:-1] if name == "b-tiny" else choices
        for layers in product(*stages):
            keys = [(stage, left) for stage, left in enumerate(layers) if left != stages[stage][0]]
            removed = [by_key[key] for key in (*keys, name) if key in by_key]
            if removed:
                is_named = set(layers) == {1} and name in named
                student = Student(name=name, layers=None if is_named else list(layers))
                found.append(_candidate(teacher, student, removed))
    return sorted(found, key=lambda candidate: (candidate.error, -candidate.parameters))


def _candidate(teacher: Candidate, student: Student, removed: Sequence[Part]) -> Candidate:
    layers = [f"student.layers={student.layers}"] if student.layers else []
    return Candidate(
        student.label,
        (f"student.name={student.name}", *layers),
        student_config(student.spec, teacher.config)[0],
        teacher.parameters - sum(part.parameters for part in removed),
        teacher.macs - sum(part.macs for part in removed),
        error=sum(part.error for part in removed),
    )


def front(all_candidates: Sequence[Candidate], cost: Literal["parameters", "macs"]) -> list[Candidate]:
    """Those that no other beats by less error at no more cost, or by less cost at no more error; least error first."""
    found: list[Candidate] = []
    for candidate in sorted(all_candidates, key=lambda c: (c.error, getattr(c, cost))):
        if not found or getattr(candidate, cost) < getattr(found[-1], cost):
            found.append(candidate)
    return found


def worth_timing(all_candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Of those within the other limits, the front over MACs; of a longer one MAX_TIMED, spread evenly, both ends too.

    Time need not follow MACs, so a student that is faster than its MACs say may be missed.
    """
    ahead = front([candidate for candidate in all_candidates if budget.allows(candidate)], "macs")
    count = min(len(ahead), MAX_TIMED)
    return [ahead[i * (len(ahead) - 1) // max(1, count - 1)] for i in range(count)]


def plot(all_candidates: Sequence[Candidate], chosen: Candidate, measured: float, path: Path) -> None:
    """Predicted error over parameters: the front as a line, the named students by name, the chosen one ringed, its
    measured error as a cross.
    """
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()

    def point(candidate: Candidate) -> tuple[float, float]:
        return candidate.parameters / 1e6, float(candidate.error or 0)

    axes.plot(*zip(*map(point, front(all_candidates, "parameters")), strict=True), color="0.7", zorder=1)
    axes.scatter(*zip(*map(point, all_candidates), strict=True), s=14, zorder=2)
    for candidate in all_candidates:
        if candidate.name in STUDENTS or candidate is chosen:
            axes.annotate(candidate.name, point(candidate), xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.scatter(*point(chosen), s=120, facecolors="none", edgecolors="C1", linewidths=2, label="chosen, predicted")
    axes.scatter(point(chosen)[0], measured, marker="x", color="C1", label="chosen, measured")
    axes.set(xlabel="million parameters", ylabel="relative error of the prediction, untrained", yscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
