"""Arguments and options that the commands of `rcdeploy prompts` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Sources = Annotated[
    list[Path],
    typer.Argument(
        help="Caption files (.txt: one per line; .csv, .tsv, .jsonl: a column; each also .gz; .parquet), or folders, "
        "which are searched recursively.",
        show_default=False,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(help="Column of the captions.", show_default="the first of text, TEXT, caption, prompt"),
]
Words = Annotated[
    Path | None,
    typer.Option(
        "--words",
        help="Word list for a concept other than animals: a singular word or phrase per line; irregular plurals after "
        "commas (goose, geese); '!' before phrases that mean something else (!hot dog).",
        show_default=False,
    ),
]
