"""The table of a sweep: JSON with every cell, Markdown with means and spreads beside the paper's figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rcdeploy_runtime.files import replacing, write_json

from .figures import shown, unit, with_spread
from .picture import draw
from .plan import Cell, Plan


def collect(plan: Plan, score: Callable[[Cell], dict[str, float]]) -> dict[str, Any]:
    """The result of a sweep as JSON, from the cells that are done; what a line sets, as its file has it."""
    lines = [_line("teacher", {}, [plan.teacher], plan, score)]
    lines += [_line(line.label, line.set, line.cells, plan, score) for line in plan.lines]
    return {
        "sweep": plan.name,
        "title": plan.spec.title,
        "recipe": plan.teacher.recipe.name,
        "seeds": plan.spec.seeds,
        "pictures": plan.score.count,
        "scored_by": plan.scored_by,
        "lines": lines,
        "paper": plan.spec.paper.model_dump() if plan.spec.paper else None,
        "note": plan.spec.note,
    }


def _line(
    label: str, keys: dict[str, Any], cells: Sequence[Cell], plan: Plan, score: Callable[[Cell], dict[str, float]]
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        plan.known.get(cell.key)
        or {
            "seed": cell.seed,
            "key": cell.key,
            "train_minutes": round(cell.train_seconds / 60, 3),
            "scores": score(cell),
        }
        for cell in cells
        if plan.is_done(cell)
    ]
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    figures = {}
    for name in names:
        values = [row["scores"][name] for row in rows if name in row["scores"]]
        figures[name] = {"mean": statistics.mean(values), "lowest": min(values), "highest": max(values)}
    return {"label": label, "set": keys, "cells": rows, "missing": len(cells) - len(rows), "figures": figures}


def markdown(plan: Plan, result: dict[str, Any], command: str) -> str:
    """Means over seeds with lowest and highest, the paper's figures, the command, what the table does not show."""
    figures, paper = shown(plan, result), plan.spec.paper
    heads = [f"{figure}{unit(figure)}" for figure in figures] + [
        f"paper: {c}" for c in (paper.columns if paper else [])
    ]
    rows = [["", *heads]]
    for line in result["lines"]:
        cells = [with_spread(f, **line["figures"][f]) if f in line["figures"] else "" for f in figures]
        theirs = [f"{v:.4f}" if abs(v) < 1 else f"{v:.2f}" for v in paper.rows.get(line["label"], [])] if paper else []
        rows.append([line["label"], *cells, *(theirs or [""] * (len(heads) - len(cells)))])
    table = ["| " + " | ".join(row) + " |" for row in rows]
    table.insert(1, "|---|" + "---|" * len(heads))
    missing = sum(line["missing"] for line in result["lines"])
    seeds = len(plan.spec.seeds)
    minutes = [cell["train_minutes"] for line in result["lines"][1:] for cell in line["cells"]]
    spread = f"means of {seeds} seeds, lowest to highest in brackets; " if seeds > 1 else "one seed; "
    said = [
        f"# {plan.spec.title}",
        "\n".join(table),
        f"{spread}{plan.score.count:,} pictures a student."
        + (f" {statistics.median(minutes):.2g} minutes of training a student, in the median." if minutes else ""),
        *([f"**{missing} of {seeds * len(plan.lines) + 1} cells are not done.**"] if missing else []),
        f"Command: `{command}`",
        *([f"The paper's figures: {paper.source}"] if paper else []),
        f"What it does not show: {plan.spec.note.strip()}",
    ]
    return "\n\n".join(s[:1].upper() + s[1:] if s is not said[1] else s for s in said) + "\n"


def write(plan: Plan, result: dict[str, Any], out: Path, command: str) -> list[Path]:
    """NAME.json, NAME.md and NAME.png below `out`."""
    written = [out / f"{plan.name}{end}" for end in (".json", ".md", ".png")]
    write_json(written[0], {**result, "command": command})
    with replacing(written[1]) as beside:
        beside.write_text(markdown(plan, result, command), encoding="utf-8")
    draw(plan, result, written[2])
    return written
