"""What a tuning found, as a table, as JSON, and as the choice that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..kept_tuning import SCHEMA_VERSION, Tuning, keep
from ..machine import this_machine, versions
from ..package import Package
from ..session_options import SessionOptions
from .measurement import Measurement
from .search import TuningResult

HEADINGS = ("", "s an image", "p10-p90", "MB", "grey levels", "")


def keep_choice(package: Package, result: TuningResult) -> Path:
    """Keep what `tune` chose, for `load`. Raises RcdeployError where the user's cache folder cannot be written."""
    chosen, default = result.chosen, result.default
    return keep(
        Tuning(
            schema_version=SCHEMA_VERSION,
            package=package.digest,
            machine=this_machine(),
            versions=versions(),
            options=SessionOptions() if chosen is default else chosen.options,
            seconds=chosen.median,
            speedup=1.0 if chosen is default else chosen.speedup(default),
            grey_levels=chosen.grey_levels or 0.0,
        )
    )


def result_json(package: Package, result: TuningResult) -> dict[str, Any]:
    """What was measured, in seconds and bytes. candidates: the default first."""
    return {
        "package": str(package.path),
        "digest": package.digest,
        "machine": vars(this_machine()),
        "versions": versions(),
        "seconds": result.seconds,
        "num_inference_steps": result.sampling.num_inference_steps,
        "package_steps": package.sampling.num_inference_steps,
        "max_grey_levels": result.max_grey_levels,
        "chosen": result.measurements.index(result.chosen),
        "candidates": [m.row(result.verdict(m)) for m in result.measurements],
    }


def text_table(package: Package, result: TuningResult) -> str:
    """How it was measured, and a line for every candidate, the default first."""
    own, drawn = package.sampling.num_inference_steps, result.sampling.num_inference_steps
    steps = f"{own} steps" if own > 1 else "one step"
    if drawn < own:
        steps += f" (timed with {drawn})"
    rows = [HEADINGS, *(_cells(m, result.verdict(m)) for m in result.measurements)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS) - 1)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(n) for text, n in zip(row[1:-1], widths[1:], strict=True))])
        for row in rows
    ]
    title = f"An image, {steps}; medians, on {this_machine().processor}, {result.seconds:.0f} s in all:"
    return "\n".join([title, *(f"{line}  {row[-1]}".rstrip() for line, row in zip(lines, rows, strict=True))])


def _cells(m: Measurement, verdict: str) -> tuple[str, ...]:
    """A candidate as texts, by HEADINGS."""
    row = m.row(verdict)
    return (
        str(replace(m.options, precision=m.precision)),
        _seconds(row["seconds"]),
        f"{_seconds(row['p10'])}-{_seconds(row['p90'])}" if row["images"] > 1 else "",
        "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:,.0f}",
        "" if row["grey_levels"] is None else f"{row['grey_levels']:.2f}",
        verdict,
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
