"""rcdeploy distill"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import typer

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

from ..recipe import Recipe
from ..recipe_file import load_recipe
from .console import (
    EXIT_INTERRUPTED,
    err,
    make_log,
    print_json,
    print_line,
    print_next,
    quieten_libraries,
    resumable,
    short_path,
    stages,
)
from .options import QUIET, RECIPE, SET

KEPT_ON_INTERRUPT = "Finished shards of latents and written checkpoints are kept: run the same command to resume."


def distill_command(
    recipe: Path = RECIPE,
    folder: Path | None = typer.Option(None, "--out", "-o", help="The run folder.", show_default="runs/NAME"),
    override: list[str] = SET,
    restart: bool = typer.Option(False, "--restart", help="Remove the run in that folder and start over."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON: run, pipeline, steps, last metrics."),
    quiet: bool = QUIET,
) -> None:
    """Distil a student from a teacher: from a recipe to a folder with the student's pipeline.

    The same command resumes a run that was stopped or killed; a finished run is left as it is. Missing latents are
    sampled first (see `rcdeploy cache`). On several GPUs: accelerate launch -m rcdeploy.cli.main distill RECIPE.
    """
    resolved = load_recipe(recipe, override)
    run_folder = folder or Path("runs") / resolved.name
    if run_folder.exists() and not run_folder.is_dir():
        raise RcdeployError(f"{run_folder} is a file; the run needs a folder of that name")
    if restart:
        _remove(run_folder)
    from ..run_folder import finished_steps, read_metrics

    quiet = quiet or as_json
    steps = finished_steps(run_folder, resolved)
    metrics: dict[str, Any] = {}
    if steps is None:
        steps, metrics = _run(resolved, run_folder, quiet)
    elif int(os.environ.get("RANK", 0)) == 0:
        metrics = _last_logged(read_metrics(run_folder))
    if int(os.environ.get("RANK", 0)) > 0:
        return
    if as_json:
        paths = {"run": str(run_folder), "pipeline": str(run_folder / "pipeline")}
        print_json({**paths, "steps": steps, **metrics})
    elif not quiet:
        _show(run_folder, steps)


def _remove(folder: Path) -> None:
    if not folder.exists() or int(os.environ.get("RANK", 0)) > 0:
        return
    from ..run_folder import exclusive

    with exclusive(folder):  # refuses a run that another process is at work on
        if all(path.suffix == ".claim" for path in folder.iterdir()):
            return  # killed before it wrote anything else
        Manifest.read(folder, "run")  # refuses what is not a run
        shutil.rmtree(folder)


def _last_logged(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The losses, learning rate and pace of the last logged step, as a run reports them at its end."""
    entry: dict[str, Any] = next((entry for entry in reversed(entries) if "loss" in entry), {})
    return {name: value for name, value in entry.items() if name != "step"}


def _run(recipe: Recipe, folder: Path, quiet: bool) -> tuple[int, dict[str, Any]]:
    """-> (steps done, metrics of the last ones)"""
    from ..distill.loop import Stopped, distill

    quieten_libraries()
    try:
        with resumable(KEPT_ON_INTERRUPT), stages(quiet) as progress:
            state = distill(recipe, folder, progress, make_log(quiet))
    except Stopped as stopped:
        err.print(str(stopped), highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    return state.step, dict(state.metrics)


def _show(folder: Path, steps: int) -> None:
    run = short_path(folder)
    print_line(f"finished: {steps:,} steps", "bold")
    print_line(f"  pipeline  {run}/pipeline")
    if (folder / "samples" / "latest.png").is_file():
        print_line(f"  images    {run}/samples/latest.png")
    if (folder / "loss.png").is_file():
        print_line(f"  losses    {run}/loss.png")
    print_line("next:")
    print_next(f"rcdeploy export {run}")
    print_next(f"rcdeploy report {run}")
    print_next(f"rcdeploy evaluate {run}")
