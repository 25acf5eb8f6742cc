"""A student by budget: the students of a teacher and further widths, counted, and timed on this machine.

Multiply-accumulates do not tell milliseconds: BK-SDM's issue 67 has 60 % fewer parameters at the same speed. So a limit
on time is measured. Nothing is trained: the size of a student stands for its quality.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rcdeploy_runtime.errors import RcdeployError

from ..plots import new_figure, save_figure
from ..progress import Progress
from ..student.build import build_on_meta, build_student
from ..student.spec import STUDENTS, StudentSpec, student_config
from .macs import latent_size_of, parameters, unet_inputs, unet_macs

LIMITS = ("unet_ms", "mb", "gmacs")
BYTES_PER_WEIGHT = 2
WIDTHS = tuple(round(0.05 * n, 2) for n in range(4, 20))
"""of channel students, beside the named ones"""
BLOCK_WIDTHS = (0.5, 0.65, 0.8)
"""of the named students that lack blocks"""


@dataclass(frozen=True)
class Budget:
    """Upper limits by name: unet_ms, milliseconds of a UNet call here; mb, megabytes of its weights in half precision;
    gmacs, its multiply-accumulates, all of them, in 10^9.
    """

    limits: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Of "unet_ms<=40,mb<=300". Raises RcdeployError for another form or name, and for what is not positive."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\w+)\s*<=?\s*(\d{1,9}(?:\.\d{1,9})?)\s*", part)
            if not match or match[1] not in LIMITS or match[1] in limits or not float(match[2]):
                raise RcdeployError(
                    f"--budget {text!r}: {part.strip()!r} is no limit, or the second of its name",
                    fix=f"Write limits as in 'unet_ms<=40,mb<=300'; there are {', '.join(LIMITS)}.",
                )
            limits[match[1]] = float(match[2])
        return cls(limits)

    @property
    def text(self) -> str:
        return ", ".join(f"{name} <= {limit:g}" for name, limit in self.limits.items())

    @property
    def is_timed(self) -> bool:
        return "unet_ms" in self.limits

    def allows(self, candidate: Candidate) -> bool:
        """Whether what is known of the candidate keeps every limit; before it is timed, that is its size."""
        costs = candidate.costs
        return all(costs[name] <= limit for name, limit in self.limits.items() if costs[name] is not None)


@dataclass(frozen=True)
class Candidate:
    """One student, counted. settings: of a recipe, as --set takes them. seconds: of UNet calls with a batch of one.
    error: relative, of the teacher's prediction without what this student lacks, as by_error.py predicts it.
    """

    name: str
    settings: tuple[str, ...]
    config: Mapping[str, Any]
    parameters: int
    macs: int
    seconds: tuple[float, ...] = ()
    error: float | None = None

    @property
    def costs(self) -> dict[str, Any]:
        """By the names of LIMITS, the median of the time; None where it was not timed."""
        return {
            "unet_ms": 1000 * statistics.median(self.seconds) if self.seconds else None,
            "mb": self.parameters * BYTES_PER_WEIGHT / 1e6,
            "gmacs": self.macs / 1e9,
        }


def candidates(
    teacher_config: Mapping[str, Any], latent_size: int | tuple[int, int] | None, text_length: int
) -> list[Candidate]:
    """The students that fit the teacher, narrower ones of those that lack blocks, channel students of WIDTHS: largest
    first, each shape once.

    Raises RcdeployError when the teacher itself cannot be counted.
    """
    unet_macs(teacher_config, latent_size, text_length)
    rules: list[tuple[str, tuple[str, ...], StudentSpec]] = []
    for name, spec in STUDENTS.items():
        rules.append((name, (f"student.name={name}",), spec))
        for width in BLOCK_WIDTHS if spec.width == 1 else ():
            both = (f"student.name={name}", f"student.width={width:g}")
            rules.append((f"{name}, width {width:g}", both, replace(spec, width=width)))
    rules += [(f"width {width:g}", (f"student.width={width:g}",), StudentSpec(width=width)) for width in WIDTHS]
    found: dict[str, Candidate] = {}
    for name, settings, spec in rules:
        try:
            config, _ = student_config(spec, teacher_config)
            unet = build_on_meta(config)
            macs = unet_macs(unet, latent_size, text_length).total
        except (RcdeployError, ValueError):  # ValueError: a group norm of one value, at a size so small
            continue
        found.setdefault(repr(config), Candidate(name, settings, config, parameters(unet), macs))
    return sorted(found.values(), key=lambda candidate: -candidate.parameters)


def timed(
    all_candidates: Sequence[Candidate],
    latent_size: int | tuple[int, int] | None,
    text_length: int,
    runs: int,
    threads: int | None,
    progress: Progress,
) -> list[Candidate]:
    """The candidates with `runs` timed calls each, after one untimed: torch, fp32, the CPU, random weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    results = []
    try:
        for number, candidate in enumerate(all_candidates):
            unet = build_student(candidate.config, 0).eval()
            height, width = latent_size_of(unet, latent_size)
            inputs = unet_inputs(unet, height, width, text_length, "cpu")
            seconds = []
            with torch.inference_mode():
                unet(**inputs)
                for _ in range(runs):
                    started = time.perf_counter()
                    unet(**inputs)
                    seconds.append(time.perf_counter() - started)
            results.append(replace(candidate, seconds=tuple(seconds)))
            progress("timing students", number + 1, len(all_candidates))
    finally:
        torch.set_num_threads(before)
    return results


def front(all_candidates: Sequence[Candidate]) -> set[str]:
    """Names of those that no other beats: none is at least as large and takes less time (or MACs, where not timed)."""

    def cost(candidate: Candidate) -> float:
        return float(candidate.costs["unet_ms"] or candidate.macs)

    return {
        one.name
        for one in all_candidates
        if not any(
            other.parameters >= one.parameters and cost(other) < cost(one)
            or other.parameters > one.parameters and cost(other) <= cost(one)
            for other in all_candidates
        )
    }  # fmt: skip


def choose(all_candidates: Sequence[Candidate], budget: Budget) -> Candidate:
    """The one with the least error within the budget, or where none is known, the most parameters.

    Raises RcdeployError, with what comes nearest, for none.
    """
    within = [candidate for candidate in all_candidates if budget.allows(candidate)]
    if within:
        return min(within, key=lambda candidate: (candidate.error or 0.0, -candidate.parameters))
    least = {
        name: min(costs)
        for name in budget.limits
        if (costs := [c.costs[name] for c in all_candidates if c.costs[name] is not None])
    }
    raise RcdeployError(
        "no student of this teacher keeps the budget",
        fix="The least that any takes: " + ", ".join(f"{name} {value:.3g}" for name, value in least.items()) + ".",
    )


def plot(all_candidates: Sequence[Candidate], chosen: Candidate, budget: Budget, path: Path) -> None:
    """Parameters over time (or MACs), the front as a line, the limit as another, the chosen one ringed."""
    cost = "unet_ms" if budget.is_timed else "gmacs"
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()

    def point(candidate: Candidate) -> tuple[float, float]:
        return candidate.costs[cost], candidate.parameters / 1e6

    names = front(all_candidates)
    line = sorted(point(candidate) for candidate in all_candidates if candidate.name in names)
    axes.plot(*zip(*line, strict=True), color="0.7", zorder=1)
    axes.scatter(*zip(*map(point, all_candidates), strict=True), s=18, zorder=2)
    for candidate in all_candidates:
        axes.annotate(candidate.name, point(candidate), xytext=(4, -9), textcoords="offset points", fontsize=7)
    axes.scatter(*point(chosen), s=120, facecolors="none", edgecolors="C1", linewidths=2)
    if cost in budget.limits:
        axes.axvline(budget.limits[cost], linestyle=":", color="C1")
    xlabel = "ms of a UNet call" if budget.is_timed else "GMACs of a UNet call"
    axes.set(xlabel=xlabel, ylabel="million parameters")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def recipe_of(text: str, candidate: Candidate) -> str:
    """A recipe's text with the candidate as its student, everything else as it stands.

    Raises RcdeployError when the recipe has no [student] table to put it into.
    """
    entries = [setting.removeprefix("student.").split("=") for setting in candidate.settings]
    lines = "".join(f'{key} = "{value}"\n' if key == "name" else f"{key} = {value}\n" for key, value in entries)
    tables = re.split(r"(?m)^(?=\[[a-z])", text)
    for number, table in enumerate(tables):
        heading, _, rest = table.partition("\n")
        if heading.partition("#")[0].strip() == "[student]":
            kept = re.sub(r"(?m)^[ \t]*(name|width|layers)[ \t]*=[ \t]*(\[[^]]*\][^\n]*|[^\n]*)(\n|\Z)", "", rest)
            tables[number] = f"{heading}\n{lines}{kept}"
            return "".join(tables)
    raise RcdeployError("the recipe has no [student] table", fix='Write one into it: [student], then name = "c-micro".')
