"""rcdeploy students"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing

from ..recipe_file import load_recipe
from ..units import giga_text
from .console import out, parse_size, print_warning, resumable, show_table, stages
from .options import JSON, QUIET, THREADS

if TYPE_CHECKING:
    from ..bench.budget import Budget, Candidate


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
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """List the students of a teacher: what each lacks, its parameters, its multiply-accumulates (MACs) per step.

    MACs are of one UNet step at the teacher's own image size. THOP's count, which papers quote, leaves out the products
    inside attention; the last column includes them.

    With --budget further widths are listed, timed on this machine where time is limited (torch, fp32, a batch of one,
    random weights), and the largest that keeps the limits is chosen.

    rcdeploy students --teacher models/mine --budget "unet_ms<=40,mb<=300" --plot students.png
    rcdeploy students --budget "mb<=400" --recipe recipes/c_micro.toml --write recipes/mine.toml
    """
    from ..model_config import read_config, read_unet_config
    from ..student.built_in import TEACHERS

    size = parse_size(latent_size, "--latent-size") if latent_size else None
    if teacher in TEACHERS:
        config, text_config = (TEACHERS[teacher][name] for name in ("unet", "text_encoder"))
    else:
        if not Path(teacher).exists():
            raise RcdeployError(
                f"there is no folder {teacher}", fix=f"Built in are the shapes of {', '.join(TEACHERS)}."
            )
        config = read_unet_config(Path(teacher))
        text_config = read_config(Path(teacher) / "text_encoder" / "config.json")
    text_length = int(text_config.get("max_position_embeddings", 77))
    if budget is None:
        if plot or recipe or write:
            raise RcdeployError("--plot, --recipe and --write are for --budget")
        _list(teacher, config, size, text_length, as_json)
        return
    from ..bench import budget as students_by_budget
    from ..machine import busy_warning

    limits = students_by_budget.Budget.parse(budget)
    new_recipe = _check_recipe(recipe, write)
    _check_plot(plot)
    found = students_by_budget.candidates(config, size, text_length)
    students_by_budget.choose(found, limits)  # nothing is timed where none is small enough
    if limits.is_timed:
        small_enough = [candidate for candidate in found if limits.allows(candidate)]
        if warning := busy_warning():
            print_warning(warning)
        with resumable("Timings are not kept; nothing was written."), stages(quiet or as_json) as progress:
            found = students_by_budget.timed(small_enough, size, text_length, runs, threads, progress)
    chosen = students_by_budget.choose(found, limits)
    _show(teacher, found, chosen, limits, as_json)
    if plot:
        students_by_budget.plot(found, chosen, limits, plot)
    if new_recipe:
        old, file = new_recipe
        _write_recipe(students_by_budget.recipe_of(old, chosen), file)
    if not (as_json or quiet):
        _print_next(chosen, write)


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


def _show(teacher: str, found: list[Candidate], chosen: Candidate, limits: Budget, as_json: bool) -> None:
    """Every candidate, largest first: its costs, and whether it is chosen, over a limit, or beaten by a larger one that
    costs no more."""
    from ..bench.budget import front

    best = front(found)
    rows = [
        {
            "student": candidate.name,
            "settings": list(candidate.settings),
            "parameters": candidate.parameters,
            **candidate.costs,
            "seconds": list(candidate.seconds),
            "within": limits.allows(candidate),
            "beaten": candidate.name not in best,
            "chosen": candidate is chosen,
        }
        for candidate in found
    ]
    if as_json:
        show_table("", [], rows, as_json=True)
        return
    table = []
    for row, candidate in zip(rows, found, strict=True):
        times = sorted(1000 * s for s in candidate.seconds)
        table.append(
            {
                "student": row["student"],
                "parameters": row["parameters"],
                "MB in half": f"{row['mb']:.3g}",
                "GMACs": giga_text(candidate.macs),
                "ms a call": f"{row['unet_ms']:.3g} ({times[0]:.3g} to {times[-1]:.3g})" if times else "",
                "": "chosen" if row["chosen"] else "over" if not row["within"] else "beaten" if row["beaten"] else "",
            }
        )
    show_table(f"Students of {teacher} for {limits.text}", list(table[0]), table, as_json=False)


def _print_next(chosen: Candidate, write: Path | None) -> None:
    out.print(f"{chosen.name}: the largest within the limits. Its size stands for its quality; nothing was trained.")
    command = (
        f"rcdeploy distill {write}"
        if write
        else "rcdeploy distill RECIPE" + "".join(f" --set {setting}" for setting in chosen.settings)
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
