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

from .console import err, make_log, print_line, quieten_libraries, resumable, show_table, stages
from .options import QUIET, SET

if TYPE_CHECKING:
    from ..sweep.plan import Plan
    from ..sweep.scores import TrialScores
    from ..sweep.trial import Trial

REFRESH_SECONDS = 2
"""between two looks at the trials' metrics"""


def sweep_command(
    file: Path = typer.Argument(help="A sweep file, for example recipes/tables/table_c.toml."),
    recipe: Path | None = typer.Option(None, "--recipe", help="Another base recipe than the file's."),
    score: Path | None = typer.Option(None, "--score", help="Another score file than the file's."),
    override: list[str] = SET,
    jobs: int = typer.Option(1, "--jobs", "-j", min=1, help="Trials at once, each in a process of its own."),
    runs: Path = typer.Option(Path("runs/sweeps"), "--runs", help="Folder of the runs; tables share them."),
    results: Path = typer.Option(Path("results"), "--out", "-o", help="Folder for NAME.json, NAME.md and NAME.png."),
    known: list[Path] = typer.Option(
        None, metavar="JSON", help="An earlier table, made here or elsewhere: its trials are not run again. Repeatable."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="List the trials, which are done, and the hours left."),
    only_table: bool = typer.Option(False, "--only-table", help="Make the table of the trials that are done."),
    as_json: bool = typer.Option(False, "--json", help="With --dry-run: as JSON."),
    key: str | None = typer.Option(None, "--trial", "--cell", metavar="KEY", help="Run this one trial, here."),
    with_parent: bool = typer.Option(False, "--exit-with-parent", hidden=True),
    quiet: bool = QUIET,
) -> None:
    """Train a recipe in several variants and with several seeds, score every student alike, and write one table.

    A table's Markdown has means and spreads over the seeds, and the paper's values beside them. Stopped or killed, the
    same command goes on; several may run at once, and tables share what they have in common. Shipped are the paper's
    tables in miniature, recipes/tables (README.md there); the same files take a model of full size:
    rcdeploy sweep recipes/tables/table_c.toml --recipe recipes/b_base.toml --score MINE.toml. Of its sizes and MACs
    (Table A) there is rcdeploy students. With CUDA_VISIBLE_DEVICES=0,1,2,3 each of four jobs has one GPU.
    """
    from ..sweep.plan import load_plan

    if with_parent:
        from ..sweep.trial_process import exit_with_parent

        exit_with_parent()
    plan = load_plan(file, recipe=recipe, score=score, overrides=override or [], runs=runs, known=known or [])
    if key:
        _run_one(plan, key, quiet)
        return
    if dry_run:
        _list(plan, jobs, as_json)
        return
    arguments = ["sweep", str(file)]
    for name, value in (("--recipe", recipe), ("--score", score)):
        arguments += [name, str(value)] if value else []
    arguments += [x for setting in override or [] for x in ("--set", setting)]
    start = [sys.executable, "-m", "rcdeploy.cli.main", *arguments, "--runs", str(runs)]
    start += ["--quiet", "--exit-with-parent", "--trial"]
    quieten_libraries()
    from ..sweep.scores import TrialScores

    scores = TrialScores(plan)  # files that scoring lacks are an error before anything is trained
    failures = {} if only_table else _run_all(plan, start, jobs, quiet)
    with resumable("The trials are done; the same command writes the table."):
        _write_table(plan, scores, results, shlex.join(["rcdeploy", *arguments]), quiet)
    if failures:
        names = plan.trial_names()
        raise RcdeployError(
            f"{len(failures)} of {len(plan.trials)} trials failed:",
            errors=[f"{names[k]}: {failure.problem}" for k, failure in failures.items()],
            fix=f"The others are in the table. Logs: {runs}/*.log. The same command tries the failed ones again.",
        )


def _run_one(plan: Plan, key: str, quiet: bool) -> None:
    quieten_libraries()
    from ..distill.loop import Stopped
    from ..sweep.run_trial import run_trial
    from ..sweep.trial_process import EXIT_BUSY, recorded_failure

    trial = plan.trial(key)
    kept = f"Everything so far is kept in {trial.folder}; the same command goes on from there."
    try:
        with recorded_failure(trial), stages(quiet) as progress, resumable(kept):
            ours = run_trial(plan, trial, progress, make_log(quiet))
    except Stopped as stopped:
        err.print(str(stopped))
        raise typer.Exit(130) from None
    if not ours:
        err.print("another process runs this trial")
        raise typer.Exit(EXIT_BUSY)


def _run_all(plan: Plan, start: list[str], jobs: int, quiet: bool) -> dict[str, RcdeployError]:
    from ..sweep.launcher import Interrupted, Launcher

    names = plan.trial_names()
    began = time.monotonic()
    steps_before = _steps_done(plan)

    def report(trial: Trial, seconds: float, failure: RcdeployError | None) -> None:
        if quiet:
            return
        steps = _steps_done(plan)
        remaining = ""
        if steps > steps_before:
            rate = (time.monotonic() - began) / (steps - steps_before)
            remaining = f"; about {_duration((_steps(plan) - steps) * rate)} left"
        outcome = f"failed: {failure.message}" if failure else f"{seconds:.0f} s"
        done = f"{_done(plan)} of {len(plan.trials)} trials: {names[trial.key]}: {outcome}{remaining}"
        err.print(done, highlight=False, soft_wrap=True)

    refreshed = 0.0
    try:
        with stages(quiet) as progress:

            def refresh() -> None:
                nonlocal refreshed
                if time.monotonic() - refreshed > REFRESH_SECONDS:
                    refreshed = time.monotonic()
                    progress("steps", _steps_done(plan), _steps(plan), None)

            return Launcher(plan.trials, lambda trial: [*start, trial.key], plan.is_done, jobs, report, refresh).run()
    except Interrupted:
        kept = f"{_done(plan)} of {len(plan.trials)} trials are done; what the others have so far is kept in"
        err.print(f"Stopped. {kept} {plan.teacher.folder.parent}. The same command goes on from there.", soft_wrap=True)
        raise typer.Exit(130) from None


def _done(plan: Plan) -> int:
    return sum(plan.is_done(trial) for trial in plan.trials)


def _steps(plan: Plan) -> int:
    return sum(trial.steps for trial in plan.to_run)


def _steps_done(plan: Plan) -> int:
    return sum(trial.steps_done for trial in plan.to_run)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _list(plan: Plan, jobs: int, as_json: bool) -> None:
    names = plan.trial_names()
    rows: list[dict[str, Any]] = [
        {
            "trial": names[trial.key],
            "state": _state(plan, trial),
            "steps": trial.steps,
            "run": str(trial.folder),
            "key": trial.key,
        }
        for trial in plan.trials
    ]
    if as_json:
        show_table("", [], rows, as_json=True)
        return
    title = f"{plan.name}: {len(rows)} trials in {plan.teacher.folder.parent}"
    short = [{**row, "key": row["key"][:8]} for row in rows]
    show_table(title, ["trial", "state", "steps", "key"], short, as_json=False)
    seconds_per_step = [trial.train_seconds / trial.steps_done for trial in plan.to_run if trial.steps_done]
    remaining = _steps(plan) - _steps_done(plan)
    if not remaining:
        print_line("every student is trained")
    elif seconds_per_step:
        time_left = _duration(remaining * statistics.mean(seconds_per_step) / jobs)
        print_line(
            f"{remaining:,} steps left: about {time_left} of training with --jobs {jobs}, "
            "without latent caches and scored images"
        )
    else:
        print_line(f"{remaining:,} steps; their time is known when the first trial is done, or from rcdeploy estimate")


def _state(plan: Plan, trial: Trial) -> str:
    from ..storage.claims import Claim

    if plan.is_done(trial):
        return "known" if plan.known_result(trial) else "done"
    if Claim(trial.folder).path.is_file():
        return "running"
    if trial.is_trained():
        return "not scored"
    return f"step {trial.steps_done:,}" if trial.steps_done else "not begun"


def _write_table(plan: Plan, scores: TrialScores, results: Path, command: str, quiet: bool) -> None:
    from ..sweep.comparison import compare
    from ..sweep.table import collect, write

    if not _done(plan):
        if not quiet:
            err.print("no trial is done: no table is written")
        return
    paths = write(plan, collect(plan, scores, compare(plan, scores)), results, command)
    if not quiet:
        for path in paths:
            print_line(str(path))
