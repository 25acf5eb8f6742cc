"""`rcdeploy`: one file a command in this folder. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import sys

import typer

from rcdeploy_runtime import __version__
from rcdeploy_runtime.errors import RcdeployError

from . import (
    bench,
    cache,
    card,
    distill,
    estimate,
    evaluate,
    export,
    generate,
    prompts,
    push,
    recipes,
    report,
    students,
    sweep,
)
from .console import show_error
from .options import CONTEXT

app = typer.Typer(
    name="rcdeploy",
    no_args_is_help=True,
    context_settings=CONTEXT,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make a large text-to-image diffusion model small, without real pictures.\n\n"
    "Begin with [bold]rcdeploy distill recipes/quickstart.toml[/bold]: a teacher fills a cache of latents, a student "
    "of half its width learns from it with random conditioning; pictures lie in [bold]runs/quickstart/samples[/bold].",
)
app.command("distill")(distill.distill_command)
app.command("estimate")(estimate.estimate_command)
app.command("cache")(cache.cache_command)
app.command("export")(export.export_command)
app.command("generate")(generate.generate_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("bench")(bench.bench_command)
app.command("card")(card.card_command)
app.command("push")(push.push_command)
app.command("report")(report.report_command)
app.command("students")(students.students_command)
app.command("sweep")(sweep.sweep_command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(prompts.app, name="prompts")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rcdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Say the version and end."),
) -> None:
    """Options before the command."""


def main() -> None:
    """Exit codes: 0 done, 1 a defect of ours, 2 something the user can mend, 130 stopped by hand."""
    try:
        app()
    except RcdeployError as error:
        show_error(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
