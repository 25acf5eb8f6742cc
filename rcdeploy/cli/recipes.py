"""rcdeploy recipes"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer

from ..recipe import Recipe
from ..recipe_file import load_recipe, shipped_recipes
from .console import print_json, print_line, print_next, short_path, show_table
from .options import JSON, RECIPE, SET

app = typer.Typer(help="List, check and plot recipes.", invoke_without_command=True)


@app.callback()
def list_command(context: typer.Context, as_json: bool = JSON) -> None:
    """List the shipped recipes with the first line of each; check or plot a recipe."""
    if context.invoked_subcommand:
        return
    rows = []
    for file in shipped_recipes():
        text = file.read_text(encoding="utf-8")
        rows.append(
            {
                "recipe": str(file) if as_json else short_path(file),
                "student": tomllib.loads(text)["student"]["name"],
                "what for": text.splitlines()[0].removeprefix("#").strip(),
            }
        )
    show_table("Shipped recipes", ["recipe", "student", "what for"], rows, as_json=as_json)


@app.command("check")
def check_command(
    recipe: Path = RECIPE,
    override: list[str] = SET,
    files: bool = typer.Option(True, "--files/--no-files", help="Check that teacher and prompt files exist."),
    as_json: bool = typer.Option(False, "--json", help="Print the recipe as JSON, with every default filled in."),
) -> None:
    """Check a recipe, and report everything that is wrong with it at once."""
    resolved = load_recipe(recipe, override, check_files=files)
    if as_json:
        print_json(resolved.resolved())
        return
    print_line(f"ok: {_summary(resolved)}")
    print_next(f"next: rcdeploy estimate {recipe}")


def _summary(recipe: Recipe) -> str:
    train = recipe.train
    conditioning = recipe.conditioning
    random = "no random conditioning" if conditioning.probability == "none" else f"p(t) {conditioning.probability}"
    teacher = short_path(Path(recipe.teacher.path))
    return (
        f"student {recipe.student.label} of {teacher}, initial weights {recipe.student.first_weights}, "
        f"{train.max_steps:,} steps of {train.global_batch_size}, {random}"
    )


@app.command("plot")
def plot_command(
    recipe: Path | None = typer.Argument(None, help="A recipe, for its p(t).", show_default="all of Table C"),
    override: list[str] = SET,
    file: Path = typer.Option(Path("conditioning.png"), "--out", "-o", help="The plot (.png, .svg or .pdf)."),
) -> None:
    """Plot p(t), the probability that a pair's prompt is replaced, over the timesteps (the paper's Fig. A)."""
    from ..conditioning import probability, recipe_probability
    from ..plots import probability_curves

    if recipe:
        section = load_recipe(recipe, override, check_files=False).conditioning
        curves: dict[str, Any] = {section.probability: recipe_probability(section)}
    else:
        names = ("exponential", "mirrored-exponential", "linear", "sigmoid", "constant")
        curves = {name: probability(name) for name in names}
        curves["constant 1"] = probability("constant", p=1.0)
    probability_curves(curves, file)
    print_line(f"written: {file}")
