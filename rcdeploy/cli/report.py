"""rcdeploy report"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from .console import err, out, quieten_libraries, stages
from .options import QUIET


def report_command(
    run: Path | None = typer.Argument(None, help="A run, also one that has not ended; the newest finished one."),
    package: Path | None = typer.Argument(None, help="What rcdeploy export made of it (folder or .zip)."),
    file: Path | None = typer.Option(None, "--out", "-o", help="The page; by default report.html in the run."),
    bench: Path | None = typer.Option(None, help="A result of rcdeploy bench --json, shown as bars."),
    prompt: list[str] = typer.Option([], help="Draw this instead of the run's own prompts; repeatable, 8 at most."),
    pictures: bool = typer.Option(True, help="Draw with teacher, student and package, which takes most of the time."),
    as_json: bool = typer.Option(False, "--json", help="Say the key figures as JSON."),
    quiet: bool = QUIET,
) -> None:
    """Write one HTML file about a run: what it draws, costs and lacks, how it was trained, where it comes from.

    The page needs no network, no script and no other file: send it, open it on a phone, keep it with the package.
    Teacher, student and package draw the same prompts from the same noise.
    """
    from ..model_folder import newest_run
    from ..report.page import write_report

    quieten_libraries()
    folder = run or newest_run(Path("runs"))
    with stages(quiet or as_json) as progress:
        said = write_report(
            folder,
            file or folder / "report.html",
            package=package,
            bench=bench,
            prompts=prompt,
            draw=pictures,
            progress=progress,
        )
    if as_json:
        out.print_json(json.dumps(said))
    elif not quiet:
        for note in said["notes"]:
            err.print(note, style="yellow", soft_wrap=True)
        out.print(f"{said['report']}  ({said['bytes'] / 1e6:.1f} MB)", soft_wrap=True)
