"""What the commands share on the terminal: error panels, progress bars, tables that can be JSON, Ctrl-C."""

from __future__ import annotations

import json
import logging
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rcdeploy_runtime.errors import RcdeployError

from ..progress import Log, no_log, no_progress

out = Console()
err = Console(stderr=True)
EXIT_INTERRUPTED = 130
MIN_PANEL_WIDTH = 40
WIDTH_FOR_ALL_METRICS = 120
_UNSHOWN_METRICS = ("grad_norm", "seconds_per_step")


def show_error(error: RcdeployError) -> None:
    """Print the message, a bullet for each single problem, and the way to fix it, on stderr.

    Lines break between words only, and the fix has no frame, so that paths and commands can be copied.
    """
    width = err.width
    lines = _wrap(error.message, width - 2)
    for problem in error.errors:
        first, *rest = _wrap(problem, width - 6) or [""]
        lines += [f"  • {first}", *(f"    {line}" for line in rest)]
    frame = min(width, max(MIN_PANEL_WIDTH, *(len(line) + 2 for line in lines)))
    _print_styled(f"╭─ rcdeploy {'─' * (frame - 12)}", "red")
    for line in lines:
        err.print(Text.assemble(("│ ", "red"), line), soft_wrap=True)
    _print_styled(f"╰{'─' * (frame - 1)}", "red")
    for line in _wrap(error.fix or "", width):
        _print_styled(line, "green")


def _wrap(text: str, width: int) -> list[str]:
    """Lines of `text`, broken between words; its own indentation and line breaks stay."""
    lines: list[str] = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += wrapped or [""]
    return lines


def _print_styled(line: str, style: str) -> None:
    err.print(Text(line, style), soft_wrap=True)


def print_json(data: Any) -> None:
    out.print_json(json.dumps(data))


def print_line(text: str = "", style: str | None = None) -> None:
    """On stdout; no markup, and paths are not broken."""
    out.print(Text(text, style or ""), soft_wrap=True)


def print_warning(text: str) -> None:
    err.print(Text(text, "yellow"), soft_wrap=True)


def print_next(command: str) -> None:
    """A command to run next, on a line of its own."""
    print_line(f"  {command}")


def make_log(quiet: bool) -> Log:
    """Receives remarks: dim lines on stderr, or nothing when quiet."""
    return no_log if quiet else lambda text: err.print(Text(text, "dim"), soft_wrap=True)


@contextmanager
def resumable(message: str) -> Iterator[None]:
    """On Ctrl-C: print what is kept and how to go on, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(Text(f"Stopped. {message}"), soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def show_table(title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows as a table, or as JSON with raw values.

    Args:
        title: above the table.
        columns: keys of the rows, which are also the headings.
        rows: the table groups thousands and rounds floats to two digits.
        as_json: JSON, with every key.
    """
    if as_json:
        print_json(rows)
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        numbers = all(_is_number(row.get(column)) for row in rows)
        table.add_column(column, justify="right" if numbers and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_format(row.get(column)) for column in columns))
    print_unbroken(table)


def print_unbroken(table: Table, console: Console = out) -> None:
    """Print a table at the terminal's width, or wider if a word (such as a path) would be broken otherwise."""
    unlimited = console.options.update(width=10_000)
    for column in table.columns:
        texts = (column.header, *column.cells)
        column.min_width = max(Measurement.get(console, unlimited, text).minimum for text in texts)
    needed = Measurement.get(console, unlimited, table).minimum
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False)


def show_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print one row of results as lines of name and value."""
    print_line(title, "bold")
    width = max(map(len, facts))
    for name, value in facts.items():
        print_line(f"  {name:<{width}}  {_format(value)}")


def short_path(path: Path) -> str:
    """Relative to the current folder if it lies below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(path)


def _is_number(value: Any) -> bool:
    return value in (None, "") or isinstance(value, (int, float)) or str(value).replace(".", "", 1).isdigit()


def _format(value: Any) -> str:
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
    """A progress.Progress with a bar for each stage, added when the stage first reports, and metrics behind the bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, completed: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        texts = [f"{name} {value:.4g}" for name, value in (metrics or {}).items() if name not in _UNSHOWN_METRICS]
        if err.width < WIDTH_FOR_ALL_METRICS:  # more would squeeze the names of the stages
            texts = texts[:1]
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, completed=completed, metrics="")
        self._progress.update(self._tasks[stage], completed=completed, total=total, metrics="  ".join(texts))


@contextmanager
def stages(quiet: bool) -> Iterator[Any]:
    """Yields a progress.Progress: live bars on stderr, or nothing when quiet or on another process than the first."""
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
        TextColumn("{task.fields[metrics]}", style="cyan"),
    )
    with Progress(*columns, console=err, speed_estimate_period=120) as progress:
        yield Stages(progress)


def quieten_libraries() -> None:
    """Turn off the loading bars and remarks of transformers and diffusers, which would disturb our own display."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """ "512x768" -> (height, width). Raises RcdeployError for anything else."""
    try:
        height, width = (int(number) for number in text.lower().split("x"))
    except ValueError:
        raise RcdeployError(f"{option} {text!r} is not of the form HxW", fix=f"For example: {option} 512x512") from None
    return height, width


def check_input_file(path: Path | None, option: str) -> None:
    """Raises RcdeployError if a file that an option names is not there."""
    if path is not None and not path.exists():
        raise RcdeployError(f"{option} {path}: there is no such file")
