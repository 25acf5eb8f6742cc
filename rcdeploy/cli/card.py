"""rcdeploy card"""

from __future__ import annotations

from pathlib import Path

import typer

from rcdeploy_runtime.files import read_json

from .console import print_json, print_line, print_next, print_warning, quieten_libraries, short_path
from .options import MODEL_FOLDER


def card_command(
    folder: Path = MODEL_FOLDER,
    teacher: Path | None = typer.Option(
        None, "--teacher", help="The teacher's diffusers folder, where the recipe does not lead to it."
    ),
    licence: str | None = typer.Option(
        None, "--license", help="The licence (mit, creativeml-openrail-m, ...), where the teacher's folder states none."
    ),
    bench: Path | None = typer.Option(None, "--bench", help="A file with what `rcdeploy bench --json` printed."),
    repo_id: str | None = typer.Option(None, "--repo-id", help="OWNER/NAME on the hub, for the example in the card."),
    as_json: bool = typer.Option(False, "--json", help="Print the card's path and licence as JSON."),
) -> None:
    """Write the model card: a README.md with usage, costs, scores and provenance for a model hub.

    It is written into the package (whose digest stays as it is) or into the run's pipeline/. The licence is the
    teacher's, as the README.md in the teacher's folder states it; otherwise the card says that it is unknown. Scores
    are those that `rcdeploy evaluate` has written for this model.
    """
    from ..report.publication import Publication

    Publication.resolve(folder)
    bench_result = read_json(bench) if bench else None
    quieten_libraries()
    from huggingface_hub import ModelCard

    from ..report.card import CardOptions, write_card

    path = write_card(folder, CardOptions(teacher, licence, bench_result, repo_id))
    stated = ModelCard.load(path).data.license
    if as_json:
        print_json({"card": str(path), "license": stated})
        return
    print_line(f"written: {short_path(path)}")
    if stated is None:
        print_warning("The teacher's licence was not found: give --teacher or --license.")
    print_next(f"next: rcdeploy push {folder} {repo_id or 'OWNER/NAME'}")
