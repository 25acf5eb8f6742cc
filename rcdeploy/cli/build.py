"""rcdeploy build"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from ..recipe_file import load_recipe
from .build_stages import Build, Stage, build_stages, check_needs, chosen_stages, remove_result
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
from .estimate import show_estimate
from .interrupts import persistent_interrupts
from .options import QUIET, RECIPE, SET

ESTIMATE_SECONDS = 5.0
"""of timing the networks, before the work begins"""


def build_command(
    recipe: Path = RECIPE,
    folder: Path | None = typer.Option(None, "--out", "-o", help="The run folder.", show_default="runs/NAME"),
    package: Path | None = typer.Option(
        None, "--package-out", help="The package.", show_default="packages/NAME-FORMAT"
    ),
    override: list[str] = SET,
    until: str | None = typer.Option(None, metavar="STAGE", help="Stop after this stage."),
    only: str | None = typer.Option(None, metavar="STAGE", help="Run this stage alone; those before must be finished."),
    restart: bool = typer.Option(False, "--restart", help="Remove the results of these stages and start them over."),
    estimate: bool = typer.Option(True, "--estimate/--no-estimate", help="Estimate hours and memory before the start."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON: the folders, and the stages."),
    quiet: bool = QUIET,
) -> None:
    """Go all the way from a recipe to a package: cache, distill, few_steps, decoder, export, report.

    The stages few_steps, decoder and export are those that the recipe has a section for. Finished stages are
    recognised and left as they are, so the same command resumes after any interruption, within a stage too. Each result
    is what the single command makes: runs/NAME, runs/NAME/few_steps, runs/NAME/decoder, packages/NAME-FORMAT.

    rcdeploy build recipes/fashion.toml
    rcdeploy build recipes/fashion.toml --only export --set export.precision=fp16
    """
    resolved = load_recipe(recipe, override)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RcdeployError(
            "rcdeploy build runs in one process",
            fix="On several GPUs run accelerate launch -m rcdeploy.cli.main distill first; build goes on from there.",
        )
    build = Build.of(resolved, folder, package)
    every = build_stages(build)
    chosen = chosen_stages(every, until, only)
    if any(stage.name == "export" for stage in chosen):
        _check_export(build)
    if restart:
        for stage in reversed(chosen):
            remove_result(stage)
    quiet = quiet or as_json
    finished = {stage.name: stage.is_finished() for stage in chosen}
    if estimate and not quiet and not finished.get("distill", True) and not build.run.exists():
        _print_estimate(build)
    for stage in chosen:
        if not stage.is_finished():
            check_needs(stage, every, recipe)
            _run(stage, quiet)
        elif not quiet:
            err.print(f"{stage.name}: finished before", style="dim", highlight=False)
    if as_json:
        rows = [{"stage": s.name, "result": str(s.result), "finished_before": finished[s.name]} for s in chosen]
        print_json({**_results(build, every), "stages": rows})
    elif not quiet:
        _show(build, every)


def _check_export(build: Build) -> None:
    """What would fail after hours fails now."""
    from rcdeploy_export.export_options import check_target

    check_target(build.package)
    build.export_options.check_installed()


def _print_estimate(build: Build) -> None:
    from ..estimate.estimate import estimate

    quieten_libraries()
    with resumable("Nothing was written."), err.status("estimating"):
        result = estimate(build.recipe, seconds=ESTIMATE_SECONDS)
    show_estimate(result, err)


def _run(stage: Stage, quiet: bool) -> None:
    """On Ctrl-C what is there stays, and the exit code is 130."""
    quieten_libraries()
    from ..distill.loop import Stopped

    log = make_log(quiet)
    log(f"{stage.name}: {short_path(stage.result)}")
    kept = f"The stage {stage.name} is not finished; what it has written is kept. The same command resumes."
    try:
        with resumable(kept), stages(quiet) as bars:
            if stage.name == "export":
                with persistent_interrupts(bars) as progress:
                    stage.run(progress, log)
            else:
                stage.run(bars, log)
    except Stopped as stopped:
        err.print(str(stopped), highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _results(build: Build, every: list[Stage]) -> dict[str, Any]:
    """The folders that are there, by what they are."""
    results = {"run": build.run, "student": build.student, "decoder": build.decoder}
    results |= {stage.name: stage.result for stage in every if stage.name == "report"}
    results["package"] = build.package if build.recipe.export else None
    return {name: str(path) if path is not None and path.exists() else None for name, path in results.items()}


def _show(build: Build, every: list[Stage]) -> None:
    results = {name: path for name, path in _results(build, every).items() if path}
    for name, path in results.items():
        print_line(f"  {name:<8}  {short_path(Path(path))}")
    if "package" in results and build.package_opens_here:
        print_line("next:")
        prompt = (build.recipe.evaluate.prompts or ["a prompt"])[0]
        print_next(f'rcdeploy generate {short_path(build.package)} "{prompt}"')
        print_next(f"rcdeploy evaluate {short_path(build.package)}")
