"""The picture of a sweep: a panel a figure, a mark a line with lowest and highest seed, or curves over one key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plots import new_figure, save_figure
from .figures import scaled, shown, unit
from .plan import Plan, label_of

Line = dict[str, Any]
"""of a result, as table.collect has it"""
PANELS, COLUMNS = 6, 3
TEACHER = {"color": "0.55", "linestyle": "--", "linewidth": 1}


def draw(plan: Plan, result: dict[str, Any], path: Path) -> None:
    """The first PANELS figures, COLUMNS in a row; the teacher is a dashed line across."""
    figures = shown(plan, result)[:PANELS]
    teacher, *lines = result["lines"]
    lines = [line for line in lines if line["figures"]]
    if not figures or not lines:
        path.unlink(missing_ok=True)
        return
    if plan.spec.x:
        _curves(plan, lines, teacher, figures, path)
    else:
        _marks(plan, lines, teacher, figures, path)


def _marks(plan: Plan, lines: list[Line], teacher: Line, figures: list[str], path: Path) -> None:
    labels = [line["label"] for line in lines]
    figure, panels = _panels(figures, 1.5 + 0.06 * max(map(len, labels)), 2.6, 0.8 + 0.24 * len(lines), sharey=True)
    for axes, name in zip(panels, figures, strict=True):
        have = [(place, line) for place, line in enumerate(lines) if name in line["figures"]]
        mean, bars = _with_bars(name, [line for _, line in have])
        axes.errorbar(mean, [place for place, _ in have], xerr=bars, fmt="o", color="C0", capsize=3, markersize=5)
        if name in teacher["figures"]:
            axes.axvline(scaled(name, teacher["figures"][name]["mean"]), **TEACHER)
        axes.set(yticks=range(len(lines)), yticklabels=labels, ylim=(len(lines) - 0.5, -0.5))
        _finish(axes, name)
    figure.suptitle(f"{plan.spec.title}\n(dashed: the teacher)", fontsize=10)
    save_figure(figure, path)


def _curves(plan: Plan, lines: list[Line], teacher: Line, figures: list[str], path: Path) -> None:
    """One curve for the lines that differ in plan.spec.x alone."""
    key, curves = str(plan.spec.x), {}  # type: tuple[str, dict[str, list[Line]]]
    for line in lines:
        own = label_of(key, line["set"][key])
        name = ", ".join(part for part in line["label"].split(", ") if part != own)
        curves.setdefault(name, []).append(line)
    figure, panels = _panels(figures, 0, 3.2, 2.6)
    for axes, name in zip(panels, figures, strict=True):
        for label, points in curves.items():
            have = sorted((p for p in points if name in p["figures"]), key=lambda p: p["set"][key])
            mean, bars = _with_bars(name, have)
            axes.errorbar([p["set"][key] for p in have], mean, bars, marker="o", capsize=3, markersize=5, label=label)
        if name in teacher["figures"]:
            axes.axhline(scaled(name, teacher["figures"][name]["mean"]), label="teacher", **TEACHER)
        values = sorted({p["set"][key] for p in lines})
        axes.set(xlabel=key, xscale="log")
        axes.set_xticks(values, [f"{v:,}" for v in values])
        axes.minorticks_off()
        _finish(axes, name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves) + 1, fontsize=8)
    figure.suptitle(plan.spec.title, fontsize=10)
    save_figure(figure, path)


def _panels(figures: list[str], left: float, width: float, height: float, **how: Any) -> tuple[Any, list[Any]]:
    """A figure with a panel of width x height inches for each of `figures`, COLUMNS in a row; `left` for labels."""
    columns = min(COLUMNS, len(figures))
    rows = -(-len(figures) // columns)
    figure = new_figure(left + columns * width, 0.7 + rows * height)
    panels = figure.subplots(rows, columns, squeeze=False, **how).flatten().tolist()
    for unused in panels[len(figures) :]:
        unused.remove()
    return figure, panels[: len(figures)]


def _with_bars(name: str, lines: list[Line]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far lowest and highest are from them."""
    values = [[scaled(name, line["figures"][name][k]) for k in ("mean", "lowest", "highest")] for line in lines]
    return [m for m, _, _ in values], [[m - low for m, low, _ in values], [high - m for m, _, high in values]]


def _finish(axes: Any, name: str) -> None:
    axes.set_title(f"{name}{unit(name)}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
