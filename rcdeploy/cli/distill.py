"""rcdeploy distill"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import typer

from rcdeploy_runtime.errors import RcdeployError

from ..recipe import Recipe
from ..recipe_file import load_recipe
from .console import err, out, quieten_libraries, stages
from .options import QUIET, RECIPE, SET


def distill_command(
    recipe: Path = RECIPE,
    folder: Path | None = typer.Option(None, "--out", "-o", help="The run folder; by default runs/NAME."),
    override: list[str] = SET,
    restart: bool = typer.Option(False, "--restart", help="Remove a run that is there, and begin anew."),
    as_json: bool = typer.Option(False, "--json", help="Say the outcome as JSON."),
    quiet: bool = QUIET,
) -> None:
    """Distil a student from a teacher, from a recipe to a folder with its pipeline in it.

    The same command goes on with a run that was stopped or killed. Missing latents are sampled first
    (see `rcdeploy cache`). On several GPUs: accelerate launch -m rcdeploy.cli.main distill RECIPE.
    """
    resolved = load_recipe(recipe, override)
    run_folder = folder or Path("runs") / resolved.name
    if restart:
        _remove(run_folder)
    _run(resolved, run_folder, as_json, quiet)


def _remove(folder: Path) -> None:
    if not folder.exists() or int(os.environ.get("RANK", 0)) > 0:
        return
    from rcdeploy_runtime.manifest import Manifest

    from ..run_folder import exclusive

    with exclusive(folder):  # refuses a run that another process is at work on
        if all(path.suffix == ".claim" for path in folder.iterdir()):
            return  # killed before it wrote anything else
        Manifest.read(folder, "run")  # refuses what is not a run
        shutil.rmtree(folder)


def _run(recipe: Recipe, folder: Path, as_json: bool, quiet: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RcdeployError(f"{folder} is a file; the run needs a folder of that name")
    from ..distill.loop import Stopped, distill

    quieten_libraries()
    quiet = quiet or as_json
    say = (lambda _text: None) if quiet else (lambda text: err.print(text, style="dim"))
    try:
        with stages(quiet) as progress:
            state = distill(recipe, folder, progress, say)
    except Stopped as stopped:
        err.print(str(stopped))
        raise typer.Exit(130) from None
    if int(os.environ.get("RANK", 0)) > 0:
        return
    if as_json:
        out.print_json(json.dumps({"run": str(folder), "steps": state.step, **state.metrics}))
    elif not quiet:
        grid = folder / "samples" / "latest.png"
        pictures = f"\n  pictures  {grid}\n  losses    {folder / 'loss.png'}" if grid.is_file() else ""
        out.print(f"student after {state.step:,} steps:\n  pipeline  {folder / 'pipeline'}{pictures}", highlight=False)
