"""rcdeploy report"""

from __future__ import annotations

from pathlib import Path

import typer

from rcdeploy_runtime.errors import RcdeployError

from .console import (
    check_input_file,
    print_json,
    print_line,
    print_warning,
    quieten_libraries,
    resumable,
    short_path,
    stages,
)
from .options import QUIET


def report_command(
    run: Path | None = typer.Argument(None, help="A run, finished or not.", show_default="the newest finished run"),
    package: Path | None = typer.Argument(
        None, help="A package that rcdeploy export made of it (folder or .zip).", show_default=False
    ),
    file: Path | None = typer.Option(None, "--out", "-o", help="The page.", show_default="report.html in the run"),
    bench: Path | None = typer.Option(None, help="A file with what `rcdeploy bench --json` printed: shown as bars."),
    prompt: list[str] = typer.Option(
        [], help="A prompt for the images, instead of the run's own; repeatable, 8 at most."
    ),
    images: bool = typer.Option(
        True,
        "--images/--no-images",
        "--pictures/--no-pictures",
        help="Generate images with teacher, student and package, which takes most of the time.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the key figures as JSON."),
    quiet: bool = QUIET,
) -> None:
    """Write one HTML file about a run: images, training, scores, costs and origin of the student.

    The page needs no network, no script and no other file: send it, open it on a phone, keep it with the package.
    Teacher, student and package generate the same prompts from the same noise. Scores are those that
    `rcdeploy evaluate` has written for this run or package.
    """
    check_input_file(bench, "--bench")
    folder = _resolve(run, package)
    quieten_libraries()
    from ..report.page import ReportOptions, write_report

    options = ReportOptions(package, bench, prompt, images)
    with (
        resumable("No page was written; run the same command again."),
        stages(quiet or as_json) as progress,
    ):
        result = write_report(folder, file or folder / "report.html", options, progress)
    if as_json:
        print_json(result)
    elif not quiet:
        for note in result["notes"]:
            print_warning(note)
        print_line(f"{short_path(Path(result['report']))}  ({result['bytes'] / 1e6:.1f} MB)")


def _resolve(run: Path | None, package: Path | None) -> Path:
    """The run's folder. Raises RcdeployError when `run` is no run, or `package` no package."""
    from ..model_folder import resolve

    if run is None:
        return Path(resolve(None).source)
    if not run.exists():
        raise RcdeployError(f"there is no run {run}", fix="Give a folder under runs/, or none for the newest.")
    if resolve(run).kind == "package":
        raise RcdeployError(f"{run} is a package, not a run", fix=f"Name its run first: rcdeploy report RUN {run}")
    resolve(run, kinds=("run",))
    if package is not None and package.exists():
        resolve(package, kinds=("package",))
    return run
