"""rcdeploy recipes"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import typer

from ..recipe_file import load_recipe, shipped_recipes
from .console import out, show_table
from .options import JSON, RECIPE, SET

app = typer.Typer(help="List, check and draw recipes.", invoke_without_command=True)


@app.callback()
def list_command(context: typer.Context, as_json: bool = JSON) -> None:
    """List the shipped recipes, with the first line of each."""
    if context.invoked_subcommand:
        return
    rows = []
    for file in shipped_recipes():
        first = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        rows.append({"recipe": str(file), "student": data["student"]["name"], "what for": first})
    show_table("shipped recipes", ["recipe", "student", "what for"], rows, as_json=as_json)


@app.command("check")
def check_command(
    recipe: Path = RECIPE,
    override: list[str] = SET,
    files: bool = typer.Option(True, help="Teacher and prompt files must be there."),
) -> None:
    """Say everything that is wrong with a recipe at once, or print it with every default filled in."""
    out.print_json(json.dumps(load_recipe(recipe, override, check_files=files).resolved()))


@app.command("plot")
def plot_command(
    recipe: Path | None = typer.Argument(None, help="Draw this recipe's p(t); without one, all of Table C."),
    override: list[str] = SET,
    picture: Path = typer.Option(Path("conditioning.png"), "--out", "-o", help="The picture (.png, .svg or .pdf)."),
) -> None:
    """Draw p(t), the probability that a pair's text is replaced, over the timesteps (the paper's Fig. A)."""
    from ..conditioning import probability, recipe_probability
    from ..plots import probability_curves

    if recipe:
        c = load_recipe(recipe, override, check_files=False).conditioning
        p = recipe_probability(c)
        curves: dict[str, Any] = {c.probability: p}
    else:
        names = ("exponential", "mirrored-exponential", "linear", "sigmoid", "constant")
        curves = {name: probability(name) for name in names}
        curves["constant 1"] = probability("constant", p=1.0)
    probability_curves(curves, picture)
    out.print(f"drawn: {picture}")
