"""Which column of a table holds the captions."""

from __future__ import annotations

import difflib
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

COLUMNS = ("text", "TEXT", "caption", "prompt")
"""Columns that may hold captions, in order of preference, where none is named."""


def find_column(path: Path, names: list[str], requested: str | None) -> str:
    """Raises RcdeployError that lists the columns of the file, and the nearest name, when none fits."""
    candidates = (requested,) if requested is not None else COLUMNS
    for name in candidates:
        if name in names:
            return name
    near = [n for c in candidates for n in difflib.get_close_matches(c.lower(), [n.lower() for n in names], n=1)]
    nearest = next((n for n in names if near and n.lower() == near[0]), None)
    listed = ", ".join(repr(n if len(n) <= 60 else n[:57] + "...") for n in names[:40]) or "none"
    what = f"no column {requested!r}" if requested is not None else f"none of the columns {', '.join(COLUMNS)}"
    hint = (
        f"Did you mean --column {nearest}?" if nearest is not None else "Name the one with the captions: --column NAME."
    )
    raise RcdeployError(
        f"{path} has {what}; its columns are: {listed}",
        fix=f"{hint} (A file with one caption a line and no header should end in .txt.)",
    )
