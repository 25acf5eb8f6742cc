"""The plot of a sweep: a panel per metric, a mark per variant with lowest and highest seed, or curves over one key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plots import new_figure, save_figure
from .metric_format import scaled, table_metrics, unit
from .plan import Plan, grid_label
from .protocol import formulas_in_short

Row = dict[str, Any]
"""of a result, as table.collect returns it"""
MAX_PANELS = 6
COLUMNS = 3
TEACHER = {"color": "0.55", "linestyle": "--", "linewidth": 1}


def plot(plan: Plan, result: dict[str, Any], path: Path) -> None:
    """The first MAX_PANELS metrics, COLUMNS in a row; the teacher is a dashed line across. Without any, no file."""
    metrics = table_metrics(plan, result)[:MAX_PANELS]
    teacher, *rows = result["lines"]
    rows = [row for row in rows if row["figures"]]
    if not metrics or not rows:
        path.unlink(missing_ok=True)
        return
    conditioning = formulas_in_short(result["protocol"]) if "protocol" in result else ""
    if plan.sweep.x:
        _curves(plan, rows, teacher, metrics, path, conditioning)
    else:
        _marks(plan, rows, teacher, metrics, path, conditioning)


def _marks(plan: Plan, rows: list[Row], teacher: Row, metrics: list[str], path: Path, conditioning: str) -> None:
    labels = [row["label"] for row in rows]
    label_width = 1.5 + 0.06 * max(map(len, labels))
    figure, panels = _panels(len(metrics), label_width, (2.6, 0.8 + 0.24 * len(rows)), sharey=True)
    for axes, name in zip(panels, metrics, strict=True):
        present = [(place, row) for place, row in enumerate(rows) if name in row["figures"]]
        mean, bars = _with_bars(name, [row for _, row in present])
        axes.errorbar(mean, [place for place, _ in present], xerr=bars, fmt="o", color="C0", capsize=3, markersize=5)
        if name in teacher["figures"]:
            axes.axvline(scaled(name, teacher["figures"][name]["mean"]), **TEACHER)
        axes.set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.5))
        _style(axes, name)
    remarks = "; ".join(filter(None, ("dashed: the teacher", conditioning)))
    figure.suptitle(f"{plan.sweep.title}\n({remarks})", fontsize=10)
    save_figure(figure, path)


def _curves(plan: Plan, rows: list[Row], teacher: Row, metrics: list[str], path: Path, conditioning: str) -> None:
    """One curve for the variants that differ in plan.sweep.x alone."""
    key = str(plan.sweep.x)
    curves: dict[str, list[Row]] = {}
    for row in rows:
        own = grid_label(key, row["set"][key])
        name = ", ".join(part for part in row["label"].split(", ") if part != own)
        curves.setdefault(name, []).append(row)
    figure, panels = _panels(len(metrics), 0, (3.2, 2.6))
    for axes, name in zip(panels, metrics, strict=True):
        for label, points in curves.items():
            present = sorted((p for p in points if name in p["figures"]), key=lambda p: p["set"][key])
            mean, bars = _with_bars(name, present)
            x = [p["set"][key] for p in present]
            axes.errorbar(x, mean, bars, marker="o", capsize=3, markersize=5, label=label)
        if name in teacher["figures"]:
            axes.axhline(scaled(name, teacher["figures"][name]["mean"]), label="teacher", **TEACHER)
        values = sorted({row["set"][key] for row in rows})
        axes.set(xlabel=key, xscale="log")
        axes.set_xticks(values, [f"{v:,}" for v in values])
        axes.minorticks_off()
        _style(axes, name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves) + 1, fontsize=8)
    figure.suptitle(f"{plan.sweep.title}\n{conditioning}".strip(), fontsize=10)
    save_figure(figure, path)


def _panels(count: int, label_width: float, size: tuple[float, float], **options: Any) -> tuple[Any, list[Any]]:
    """A figure with `count` panels of size (width, height), all in inches, COLUMNS in a row; labels on the left."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(label_width + columns * size[0], 0.7 + rows * size[1])
    panels = figure.subplots(rows, columns, squeeze=False, **options).flatten().tolist()
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _with_bars(name: str, rows: list[Row]) -> tuple[list[float], list[list[float]]]:
    """Means, and the distances of lowest and highest from them."""
    values = [[scaled(name, row["figures"][name][k]) for k in ("mean", "lowest", "highest")] for row in rows]
    return [m for m, _, _ in values], [[m - low for m, low, _ in values], [high - m for m, _, high in values]]


def _style(axes: Any, name: str) -> None:
    axes.set_title(f"{name}{unit(name)}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
