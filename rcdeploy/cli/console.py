"""What the commands have in common on the terminal: panels for errors, progress, tables that can be JSON."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rcdeploy_runtime.errors import RcdeployError

from ..progress import no_progress

out, err = Console(), Console(stderr=True)


def show_error(error: RcdeployError) -> None:
    body = Text(error.problem)
    if error.fix:
        body.append(f"\n\n{error.fix}", style="green")
    err.print(Panel(body, title="rcdeploy", title_align="left", border_style="red", expand=False))


def show_table(title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """columns: keys of the rows, which are also the headings. JSON keeps raw values; the table groups thousands."""
    if as_json:
        out.print_json(json.dumps(rows))
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        numbers = all(_is_number(row.get(column)) for row in rows)
        table.add_column(column, justify="right" if numbers and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    out.print(table)


def _is_number(value: Any) -> bool:
    return value in (None, "") or isinstance(value, (int, float)) or str(value).replace(".", "", 1).isdigit()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


class _Rate(TextColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


class Stages:
    """A bar per stage, made when the stage first reports; figures (losses) stand behind the bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._tasks = progress, {}  # type: tuple[Progress, dict[str, Any]]

    def __call__(self, stage: str, done: int, of: int, figures: Mapping[str, float] | None = None) -> None:
        shown = "  ".join(
            f"{name} {value:.4g}"
            for name, value in (figures or {}).items()
            if name not in ("grad_norm", "seconds_per_step")
        )
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=of, completed=done, figures="")
        self._progress.update(self._tasks[stage], completed=done, total=of, figures=shown)


@contextmanager
def stages(quiet: bool) -> Iterator[Any]:
    """Yields progress(stage, done, of, figures): live bars on stderr, or nothing when quiet."""
    if quiet or int(os.environ.get("RANK", 0)) > 0:
        yield no_progress
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(""),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[figures]}", style="cyan"),
    )
    with Progress(*columns, console=err, speed_estimate_period=120) as progress:
        yield Stages(progress)


def quieten_libraries() -> None:
    """Loading bars and remarks of transformers and diffusers would tear our own display apart."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """ "512x768" -> (height, width). Raises RcdeployError for anything else."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise RcdeployError(f"{option} {text!r} is not of the form HxW", fix=f"For example: {option} 512x512") from None
    return height, width
