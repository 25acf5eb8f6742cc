"""rcdeploy students"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing

from ..machine import busy_warning
from ..recipe_file import load_recipe
from ..units import giga_text
from .console import out, parse_size, print_line, print_warning, resumable, show_table, stages
from .options import JSON, QUIET, THREADS
from .students_by_error import ByError, choose_by_error
from .students_by_size import BySize, choose_by_size

if TYPE_CHECKING:
    from ..bench.budget import Candidate


def students_command(
    teacher: str = typer.Option(
        "sd-1.4",
        "--teacher",
        metavar="FOLDER|NAME",
        help="The teacher's diffusers folder, or one whose shapes are built in: sd-1.4, sd-2.1-base, sd-2.1, sdxl.",
    ),
    budget: str | None = typer.Option(
        None,
        metavar="LIMITS",
        help="Choose the largest student within limits such as 'unet_ms<=40,mb<=300': unet_ms is measured here, mb is "
        "the UNet's weights in half precision, gmacs its multiply-accumulates.",
    ),
    runs: int = typer.Option(5, min=1, max=1000, help="With unet_ms: timed calls of each student."),
    threads: int | None = THREADS,
    latent_size: str | None = typer.Option(None, metavar="HxW", help="In latent pixels; the teacher's own by default."),
    plot: Path | None = typer.Option(None, help="With --budget: a plot of all students, .png or .svg."),
    recipe: Path | None = typer.Option(None, help="With --write: the recipe to put the chosen student into."),
    write: Path | None = typer.Option(None, help="The new recipe, beside --recipe."),
    by_error: bool = typer.Option(
        False,
        "--by-error",
        help="With --budget: choose which layers go, by how far the teacher's prediction moves without each of them.",
    ),
    prompts: Path | None = typer.Option(
        None,
        help="With --by-error: a file of prompts as they will be used; by default captions.txt(.gz) in the teacher.",
    ),
    count: int = typer.Option(8, min=1, max=1000, help="With --by-error: prompts that the teacher draws for it."),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """List the students of a teacher: what each lacks, its parameters, its multiply-accumulates (MACs) per step.

    MACs are of one UNet step at the teacher's own image size. THOP's count, which papers quote, leaves out the products
    inside attention; the last column includes them.

    With --budget further widths are listed, timed on this machine where time is limited (torch, fp32, a batch of one,
    random weights), and the largest that keeps the limits is chosen.

    With --budget and --by-error only layers, mid block and innermost stage are removed, those whose absence changes the
    teacher's own prediction least (LAPTOP-Diff, arXiv 2404.11098); widths are not tried. It takes 10 UNet calls a
    prompt, and 5 for each part that may go. Of limits on time, at most 16 students are timed.

    rcdeploy students --teacher models/mine --budget "unet_ms<=40,mb<=300" --plot students.png
    rcdeploy students --budget "mb<=400" --recipe recipes/c_micro.toml --write recipes/mine.toml
    rcdeploy students --teacher models/mine --budget "mb<=900" --by-error
    """
    size = parse_size(latent_size, "--latent-size") if latent_size else None
    config, text_length = _teacher(teacher)
    if budget is None:
        if plot or recipe or write or by_error or prompts:
            raise RcdeployError("--plot, --recipe, --write, --by-error and --prompts are for --budget")
        _list(teacher, config, size, text_length, as_json)
        return
    from ..bench.budget import Budget, recipe_of, timed

    limits = Budget.parse(budget)
    new_recipe = _check_recipe(recipe, write)
    _check_plot(plot)
    if prompts and not by_error:
        raise RcdeployError("--prompts is for --by-error: without it no teacher draws anything")
    captions = _captions(teacher, prompts, count) if by_error else []
    with resumable("Measurements are not kept; nothing was written."), stages(quiet or as_json) as progress:

        def time(found: list[Candidate]) -> list[Candidate]:
            if warning := busy_warning():
                print_warning(warning)
            return timed(found, size, text_length, runs, threads, progress)

        choice: ByError | BySize
        if by_error:
            choice = choose_by_error(Path(teacher), captions, limits, size, text_length, time, progress)
        else:
            choice = choose_by_size(config, limits, size, text_length, time)
    choice.show(teacher, as_json)
    if plot:
        choice.plot(plot)
    if new_recipe:
        old, file = new_recipe
        _write_recipe(recipe_of(old, choice.chosen), file)
    if not (as_json or quiet):
        print_line(choice.reason)
        _print_next(choice.chosen, write)


def _teacher(teacher: str) -> tuple[dict[str, Any], int]:
    """The UNet's config and the number of tokens of a prompt."""
    from ..model_config import read_config, read_unet_config
    from ..student.built_in import TEACHERS

    if teacher in TEACHERS:
        config, text_config = (TEACHERS[teacher][name] for name in ("unet", "text_encoder"))
    else:
        if not Path(teacher).exists():
            raise RcdeployError(
                f"there is no folder {teacher}", fix=f"Built in are the shapes of {', '.join(TEACHERS)}."
            )
        config = read_unet_config(Path(teacher))
        text_config = read_config(Path(teacher) / "text_encoder" / "config.json")
    return config, int(text_config.get("max_position_embeddings", 77))


def _captions(teacher: str, prompts: Path | None, count: int) -> list[str]:
    """Raises RcdeployError for a teacher of which there are only shapes, and where there are no prompts."""
    from ..bench.layer_error import captions
    from ..student.built_in import TEACHERS

    if teacher in TEACHERS:
        raise RcdeployError(
            f"--by-error measures what a teacher predicts, and of {teacher} only the shapes are built in",
            fix="Give its diffusers folder, with weights: --teacher FOLDER.",
        )
    return captions(Path(teacher), prompts, count)


def _list(
    teacher: str, config: dict[str, Any], latent_size: tuple[int, int] | None, text_length: int, as_json: bool
) -> None:
    from ..bench.student_table import student_table

    rows = student_table(config, latent_size, text_length)
    if as_json:
        show_table("", [], rows, as_json=True)
        return
    table = [
        {
            "student": row["name"],
            "removed": row["error"] or "; ".join([row["removed"], *row["notes"]]),
            "parameters": row["parameters"],
            "GMACs (THOP)": "" if row["macs_thop"] is None else giga_text(row["macs_thop"]),
            "GMACs, all": "" if row["macs_total"] is None else giga_text(row["macs_total"]),
        }
        for row in rows
    ]
    show_table(f"Students of {teacher}", list(table[0]), table, as_json=False)


def _print_next(chosen: Candidate, write: Path | None) -> None:
    command = (
        f"rcdeploy distill {write}"
        if write
        else "rcdeploy distill RECIPE" + "".join(f" --set {quote(setting)}" for setting in chosen.settings)
    )
    out.print(command, markup=False, highlight=False, soft_wrap=True)


def _check_recipe(recipe: Path | None, write: Path | None) -> tuple[str, Path] | None:
    """The text of the recipe to change and the new file; None without both. Raises RcdeployError for one alone."""
    if recipe is None and write is None:
        return None
    if recipe is None or write is None:
        raise RcdeployError("--recipe and --write go together: the recipe to begin with, and the new one")
    load_recipe(recipe, check_files=False)
    if write.exists():
        raise RcdeployError(f"{write} exists", fix="Give --write another name.")
    if write.resolve().parent != recipe.resolve().parent:
        raise RcdeployError(
            f"{write} is not beside {recipe}, whose paths are relative to its folder",
            fix=f"Write {recipe.parent / write.name}, or copy the recipe first.",
        )
    return recipe.read_text(encoding="utf-8"), write


def _write_recipe(text: str, file: Path) -> None:
    """Raises RcdeployError when the student does not go with the rest of the recipe, such as student.init."""
    with TemporaryDirectory() as folder:
        trial = Path(folder) / file.name  # of the same name, which a recipe takes from its file
        trial.write_text(text, encoding="utf-8")
        load_recipe(trial, check_files=False)
    with replacing(file) as beside:
        beside.write_text(text, encoding="utf-8")


def _check_plot(plot: Path | None) -> None:
    if plot and (plot.suffix not in (".png", ".svg", ".pdf") or not plot.absolute().parent.is_dir()):
        raise RcdeployError(f"--plot {plot}: the name must end in .png, .svg or .pdf, in a folder that exists")
