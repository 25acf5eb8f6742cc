"""The command line: each command has its file in this folder, and imports nothing heavy before it runs."""

from __future__ import annotations

import inspect
import sys

import typer

from rcdeploy_runtime import __version__
from rcdeploy_runtime.errors import RcdeployError

from . import (
    bench,
    build,
    cache,
    card,
    distill,
    estimate,
    evaluate,
    export,
    generate,
    import_checkpoint,
    package,
    prompts,
    push,
    recipes,
    report,
    students,
    sweep,
    tune,
)
from .console import show_error
from .options import CONTEXT
from .privacy import disable_telemetry

app = typer.Typer(
    name="rcdeploy",
    no_args_is_help=True,
    context_settings=CONTEXT,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make a large text-to-image diffusion model small, without real images.\n\n"
    "Start with [bold]rcdeploy distill recipes/quickstart.toml[/bold]: a teacher fills a cache of latents, a student "
    "of half its width learns from it with random conditioning, and its images are written to "
    "[bold]runs/quickstart/samples[/bold].",
)
app.command("distill")(distill.distill_command)
app.command("build")(build.build_command)
app.command("estimate")(estimate.estimate_command)
app.command("cache")(cache.cache_command)
app.command("import")(import_checkpoint.import_command)
app.command("export")(export.export_command)
app.command("generate")(generate.generate_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("bench")(bench.bench_command)
app.command("card")(card.card_command)
app.command("push")(push.push_command)
app.command("report")(report.report_command)
app.command("students")(students.students_command)
app.command("sweep")(sweep.sweep_command)
app.command("tune")(tune.tune_command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(prompts.app, name="prompts")
app.add_typer(package.app, name="package")


def _join_help_lines(group: typer.Typer) -> None:
    """Docstrings are wrapped for editors: join the lines of each paragraph, so that help fills any terminal."""
    for command in group.registered_commands:
        command.help = _join_paragraphs(command.help or getattr(command.callback, "__doc__", None))
    for subgroup in group.registered_groups:
        if subgroup.typer_instance is not None:
            _join_help_lines(subgroup.typer_instance)


def _join_paragraphs(text: str | None) -> str:
    """Lines of example commands stay lines of their own."""
    joined: list[str] = []
    for line in inspect.cleandoc(text or "").splitlines():
        starts_anew = not line or not joined or not joined[-1] or line.startswith(("rcdeploy ", " "))
        if starts_anew or joined[-1].startswith("rcdeploy "):
            joined.append(line)
        else:
            joined[-1] += f" {line}"
    return "\n".join(joined)


_join_help_lines(app)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"rcdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Options before the command."""


def main() -> None:
    """Exit codes: 0 done, 1 a bug in rcdeploy, 2 an error that the user can fix, 130 stopped by Ctrl-C."""
    disable_telemetry()
    try:
        app()
    except RcdeployError as error:
        show_error(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
