"""rcdeploy estimate"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.panel import Panel
from rich.table import Table

from ..recipe import load_recipe
from ..units import bytes_text, count_text
from .console import err, out, quieten_libraries
from .options import QUIET, RECIPE, SET


def estimate_command(
    recipe: Path = RECIPE,
    override: list[str] = SET,
    device: str | None = typer.Option(
        None, "--device", "-d", help="A GPU by name, such as a100-80g or rtx-4090; by default this machine, measured."
    ),
    processes: int = typer.Option(
        1, "--num-processes", min=1, help="GPUs that share the work, as accelerate launch has it."
    ),
    measure: bool | None = typer.Option(
        None, "--measure/--no-measure", help="Time the networks on this machine; by default where that is quick."
    ),
    as_json: bool = typer.Option(False, "--json", help="As JSON: seconds, bytes, multiply-accumulates."),
    quiet: bool = QUIET,
) -> None:
    """Say what a recipe will cost before anything is started: hours, memory, disk, calls of the teacher.

    Nothing is written and no weights are needed. Captions are read and counted; the training step is run on shapes
    alone for its multiply-accumulates and memory; on this machine the networks are timed for some seconds with random
    weights. A recipe whose captions are not there yet: --set prompts.paired_count=212000. Named GPUs have published
    rates and an efficiency calibrated on published runs: expect tens of percent, not percents.
    """
    resolved = load_recipe(recipe, override, check_files=False)
    from ..estimate.estimate import estimate
    from ..machine import busy_words

    quieten_libraries()
    busy = None if device or measure is False else busy_words()
    if quiet or as_json:
        found = estimate(resolved, device, processes=processes, measure=measure)
    else:
        with err.status("counting and timing"):
            found = estimate(resolved, device, processes=processes, measure=measure)
    if as_json:
        out.print_json(json.dumps(found))
        return
    _show(found)
    if not quiet:
        for sentence in found["basis"]:
            out.print(sentence, style="dim", highlight=False)
    if busy:
        err.print(busy, style="yellow", soft_wrap=True)
    for warning in found["warnings"]:
        err.print(Panel(warning, title="memory", title_align="left", border_style="red", expand=False))


def _show(found: dict[str, Any]) -> None:
    device, total, memory = found["device"], found["total"], found["memory"]
    where = device["title"] + (f" x {device['processes']}" if device["processes"] > 1 else "")
    table = Table(title=f"{found['recipe']}: student {found['student']} on {where}", title_justify="left")
    for column in ("stage", "amount"):
        table.add_column(column, overflow="fold")
    for column in ("MACs", "on disk", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in found["stages"]:
        table.add_row(stage["stage"], stage["amount"], *_cells(stage))
    table.add_section()
    table.add_row(
        "total",
        f"{total['teacher_rows']:,} rows of the teacher in {total['teacher_calls']:,} calls",
        *_cells(total),
        style="bold",
    )
    out.print(table, highlight=False)
    stages = ("caching", "training", "drawing")
    parts = ("teacher", "student", "gradients", "optimizer", "ema", "activations")
    out.print(
        f"memory: {bytes_text(memory['peak'])} of {bytes_text(memory['device'])} at the most\n"
        f"  training: {', '.join(f'{name} {bytes_text(memory[name])}' for name in parts)}\n"
        f"  while {', '.join(f'{name} {bytes_text(memory[name])}' for name in stages if memory[name])}",
        highlight=False,
    )


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    macs, disk = row["macs"], row["disk_bytes"]
    return count_text(macs) if macs else "", bytes_text(disk) if disk else "", _time(row["seconds"])


def _time(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 3600:,.0f} h"
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:,.1f} s" if seconds else ""
