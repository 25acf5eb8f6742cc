"""rcdeploy estimate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..recipe_file import load_recipe
from ..units import bytes_text, count_text
from .console import err, out, print_json, print_unbroken, print_warning, quieten_libraries, resumable
from .options import JSON, QUIET, RECIPE, SET

MEMORY_STAGES = ("caching", "training", "drawing")
MEMORY_PARTS = ("teacher", "student", "gradients", "optimizer", "ema", "activations")


def estimate_command(
    recipe: Path = RECIPE,
    override: list[str] = SET,
    device: str | None = typer.Option(
        None,
        "--device",
        "-d",
        help="A GPU by name, such as a100-80g or rtx-4090.",
        show_default="this machine, measured",
    ),
    processes: int = typer.Option(
        1, "--num-processes", min=1, help="GPUs that share the work, as in accelerate launch."
    ),
    measure: bool | None = typer.Option(
        None,
        "--measure/--no-measure",
        help="Time the networks on this machine.",
        show_default="if that takes a few seconds",
    ),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Estimate what a recipe will cost before anything is started: hours, memory, disk, calls of the teacher.

    Nothing is written and no weights are needed. Captions are read and counted; multiply-accumulates and memory come
    from a training step on shapes alone; on this machine the networks are timed for a few seconds with random weights.
    If the captions are not there yet, give their number: --set prompts.paired_count=212000. Named GPUs have published
    rates and an efficiency calibrated on published runs: expect errors of tens of percent.
    """
    resolved = load_recipe(recipe, override, check_files=False)
    from ..estimate.estimate import estimate
    from ..machine import busy_warning

    quieten_libraries()
    busy = None if device or measure is False else busy_warning()
    with resumable("Nothing was written."):
        if quiet or as_json:
            result = estimate(resolved, device, processes=processes, measure=measure)
        else:
            with err.status("counting and timing"):
                result = estimate(resolved, device, processes=processes, measure=measure)
    result["warnings"] += [busy] if busy else []
    if as_json:
        print_json(result)
        return
    show_estimate(result)
    if not quiet:
        for sentence in result["basis"]:
            out.print(sentence, style="dim", highlight=False)
    for warning in result["warnings"]:
        print_warning(warning)


def show_estimate(result: dict[str, Any], console: Console = out) -> None:
    """The estimate as a table and lines on memory."""
    device = result["device"]
    memory = result["memory"]
    where = device["title"] + (f" x {device['processes']}" if device["processes"] > 1 else "")
    table = Table(title=f"{result['recipe']}: student {result['student']} on {where}", title_justify="left")
    for column in ("stage", "amount"):
        table.add_column(column, overflow="fold")
    for column in ("MACs", "on disk", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in result["stages"]:
        table.add_row(stage["stage"], stage["amount"], *_totals(stage))
    table.add_section()
    total = result["total"]
    table.add_row(
        "total",
        f"{total['teacher_rows']:,} samples through the teacher in {total['teacher_calls']:,} calls",
        *_totals(total),
        style="bold",
    )
    print_unbroken(table, console)
    console.print(
        f"memory: {bytes_text(memory['peak'])} of {bytes_text(memory['device'])} at the peak\n"
        f"  training: {', '.join(f'{name} {bytes_text(memory[name])}' for name in MEMORY_PARTS)}\n"
        f"  while {', '.join(f'{name} {bytes_text(memory[name])}' for name in MEMORY_STAGES if memory[name])}",
        highlight=False,
    )


def _totals(row: dict[str, Any]) -> tuple[str, str, str]:
    """MACs, bytes on disk and time of a row, empty where there are none."""
    macs = count_text(row["macs"]) if row["macs"] else ""
    disk = bytes_text(row["disk_bytes"]) if row["disk_bytes"] else ""
    return macs, disk, _duration(row["seconds"])


def _duration(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 3600:,.0f} h"
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:,.1f} s" if seconds else ""
