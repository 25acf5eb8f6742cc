"""rcdeploy card"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from .console import out, quieten_libraries
from .options import MODEL_FOLDER


def card_command(
    folder: Path = MODEL_FOLDER,
    teacher: Path | None = typer.Option(
        None, "--teacher", help="The teacher's diffusers folder, where the recipe does not lead to it."
    ),
    licence: str | None = typer.Option(
        None, "--license", help="The licence (mit, creativeml-openrail-m, ...), where the teacher's folder states none."
    ),
    bench: Path | None = typer.Option(None, "--bench", help="What `rcdeploy bench --json` printed, in a file."),
    repo_id: str | None = typer.Option(None, "--repo-id", help="OWNER/NAME on the hub, for the example in the card."),
    as_json: bool = typer.Option(False, "--json", help="Say where the card is, and its licence, as JSON."),
) -> None:
    """Write the model card: README.md with what the hub wants to know, how to use the model, figures and provenance.

    It goes into the package (its manifest lists it then), or into the run's pipeline/. The licence is the teacher's, as
    the README.md in the teacher's folder states it; where none is stated the card says so. `rcdeploy push` is next.
    """
    from huggingface_hub import ModelCard

    from rcdeploy_runtime.files import read_json

    from ..report.card import write_card

    quieten_libraries()
    figures = read_json(bench) if bench else None
    path = write_card(folder, teacher=teacher, licence=licence, bench=figures, repo_id=repo_id)
    found = ModelCard.load(path).data.license
    if as_json:
        out.print_json(json.dumps({"card": str(path), "license": found}))
        return
    out.print(str(path), soft_wrap=True)
    if found is None:
        out.print("The teacher's licence was not found: give --teacher or --license.", style="yellow", soft_wrap=True)
