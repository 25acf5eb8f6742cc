"""rcdeploy sweep"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from ..storage.claims import Claim
from ..sweep.plan import RUNS, Cell, Plan, load_plan
from .console import err, out, quieten_libraries, show_table, stages
from .options import QUIET, SET

if TYPE_CHECKING:
    from ..sweep.cell import Scores


def sweep_command(
    file: Path = typer.Argument(help="A sweep file, for example recipes/tables/table_c.toml."),
    recipe: Path | None = typer.Option(None, "--recipe", help="Another base recipe than the file's."),
    score: Path | None = typer.Option(None, "--score", help="Another score file than the file's."),
    override: list[str] = SET,
    jobs: int = typer.Option(1, "--jobs", "-j", min=1, help="Students trained at once, each in a process of its own."),
    runs: Path = typer.Option(RUNS, "--runs", help="Where the runs are kept; tables share them."),
    results: Path = typer.Option(Path("results"), "--out", "-o", help="Where NAME.json, NAME.md and NAME.png go."),
    known: list[Path] = typer.Option(
        None, metavar="JSON", help="A table made before, here or elsewhere: what it has is not made again. Repeatable."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="List the cells, which are done, and the hours left."),
    only_table: bool = typer.Option(False, "--only-table", help="Make the table of the cells that are done."),
    as_json: bool = typer.Option(False, "--json", help="With --dry-run: as JSON."),
    key: str | None = typer.Option(None, "--cell", metavar="KEY", help="Make this one cell, in this process."),
    quiet: bool = QUIET,
) -> None:
    """Train a recipe in several ways and with several seeds, score every student alike, and write one table.

    A table's Markdown has means and spreads over the seeds, and the paper's figures beside them. Stopped or killed, the
    same command goes on; several may run at once, and tables share what they have in common. Shipped are the paper's
    tables in miniature, recipes/tables (README.md there); the same files take a model of full size:
    rcdeploy sweep recipes/tables/table_c.toml --recipe recipes/b_base.toml --score MINE.toml. Of its sizes and MACs
    (Table A) there is rcdeploy students. With CUDA_VISIBLE_DEVICES=0,1,2,3 each of four jobs has one GPU.
    """
    plan = load_plan(file, recipe=recipe, score=score, overrides=override or [], runs=runs, known=known or [])
    if key:
        _one_cell(plan, key, quiet)
        return
    if dry_run:
        _list(plan, jobs, as_json)
        return
    words = ["sweep", str(file)]
    for name, value in (("--recipe", recipe), ("--score", score)):
        words += [name, str(value)] if value else []
    words += [word for setting in override or [] for word in ("--set", setting)]
    command = shlex.join(["rcdeploy", *words])
    start = [sys.executable, "-m", "rcdeploy.cli.main", *words, "--runs", str(runs), "--quiet", "--cell"]
    quieten_libraries()
    from ..sweep.cell import Scores

    scores = Scores(plan)  # what cannot be scored is said before anything is trained
    failures = {} if only_table else _work(plan, start, jobs, quiet)
    _write(plan, scores, results, command, quiet)
    if failures:
        names = _names(plan)
        listed = "\n".join(f"  • {names[k]}: {said}" for k, said in failures.items())
        raise RcdeployError(
            f"{len(failures)} of {len(plan.cells)} cells failed:\n{listed}",
            fix=f"The others are in the table. Logs: {runs}/*.log. The same command tries the failed ones again.",
        )


def _names(plan: Plan) -> dict[str, str]:
    """What people call a cell, by its key; lines that share it are joined."""
    found: dict[str, list[str]] = {plan.teacher.key: ["teacher"]}
    for line in plan.lines:
        for cell in line.cells:
            found.setdefault(cell.key, []).append(line.label)
    seeds = {cell.key: f", seed {cell.seed}" if cell.trained else "" for cell in plan.cells}
    return {key: " = ".join(labels) + seeds[key] for key, labels in found.items()}


def _one_cell(plan: Plan, key: str, quiet: bool) -> None:
    from ..distill.loop import Stopped
    from ..sweep.cell import make
    from ..sweep.work import BUSY

    quieten_libraries()
    say = (lambda _text: None) if quiet else (lambda text: err.print(text, style="dim"))
    try:
        with stages(quiet) as progress:
            made = make(plan, plan.cell(key), progress, say)
    except Stopped as stopped:
        err.print(str(stopped))
        raise typer.Exit(130) from None
    if not made:
        err.print("another process is at this cell")
        raise typer.Exit(BUSY)


def _work(plan: Plan, start: list[str], jobs: int, quiet: bool) -> dict[str, str]:
    from ..sweep.work import Interrupted, Work

    names, began = _names(plan), time.monotonic()
    before = _steps_done(plan)

    def finished(cell: Cell, seconds: float, failure: str | None) -> None:
        if quiet:
            return
        done = sum(plan.is_done(c) for c in plan.cells)
        steps = _steps_done(plan)
        left = ""
        if steps > before:
            rate = (time.monotonic() - began) / (steps - before)
            left = f"; about {_duration((_steps(plan) - steps) * rate)} left"
        how = f"failed: {failure.splitlines()[0]}" if failure else f"{seconds:.0f} s"
        err.print(f"{done} of {len(plan.cells)} cells: {names[cell.key]}: {how}{left}", highlight=False, soft_wrap=True)

    try:
        with stages(quiet) as progress:
            looked = [0.0]

            def tell() -> None:
                if time.monotonic() - looked[0] > 2:
                    looked[0] = time.monotonic()
                    progress("steps", _steps_done(plan), _steps(plan), {})

            work = Work(plan.cells, lambda cell: [*start, cell.key], plan.is_done, jobs, finished, tell)
            return work.run()
    except Interrupted:
        err.print("stopped; the same command goes on")
        raise typer.Exit(130) from None


def _steps(plan: Plan) -> int:
    return sum(cell.steps for cell in plan.to_make)


def _steps_done(plan: Plan) -> int:
    return sum(cell.steps_done for cell in plan.to_make)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _list(plan: Plan, jobs: int, as_json: bool) -> None:
    names = _names(plan)
    rows: list[dict[str, Any]] = [
        {
            "cell": names[cell.key],
            "state": _state(plan, cell),
            "steps": cell.steps,
            "run": str(cell.folder),
            "key": cell.key,
        }
        for cell in plan.cells
    ]
    if as_json:
        show_table("", [], rows, as_json=True)
        return
    columns = ["cell", "state", "steps", "key"]
    shown = [{**row, "key": row["key"][:8]} for row in rows]
    show_table(f"{plan.name}: {len(rows)} cells in {plan.teacher.folder.parent}", columns, shown, as_json=False)
    each = [cell.train_seconds / cell.steps_done for cell in plan.to_make if cell.steps_done]
    left = _steps(plan) - _steps_done(plan)
    if not left:
        out.print("every student is trained")
    elif each:
        hours = _duration(left * statistics.mean(each) / jobs)
        out.print(f"{left:,} steps left: about {hours} of training with --jobs {jobs}, caches and pictures not counted")
    else:
        out.print(f"{left:,} steps; how long they take is known when the first is done, or from rcdeploy estimate")


def _state(plan: Plan, cell: Cell) -> str:
    if plan.is_done(cell):
        return "known" if cell.key in plan.known else "done"
    if Claim(cell.folder).path.is_file():
        return "somebody is at it"
    if cell.is_trained():
        return "not scored"
    return f"step {cell.steps_done:,}" if cell.steps_done else "waits"


def _write(plan: Plan, scores: Scores, results: Path, command: str, quiet: bool) -> None:
    from ..sweep.table import collect, write

    if not any(plan.is_done(cell) for cell in plan.cells):
        if not quiet:
            err.print("no cell is done: no table is written")
        return
    written = write(plan, collect(plan, scores), results, command)
    if not quiet:
        out.print("\n".join(str(path) for path in written), highlight=False)
