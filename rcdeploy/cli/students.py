"""rcdeploy students"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from ..units import giga_text
from .console import show_table


def students_command(
    teacher: Path | None = typer.Option(None, "--teacher", help="A diffusers folder; by default SD-1.4, built in."),
    as_json: bool = typer.Option(False, "--json", help="As JSON, with raw numbers."),
) -> None:
    """Show every student of a teacher: what is removed, its parameters, its multiply-accumulates a step.

    MACs are of one UNet step at the teacher's own size. THOP's count, which papers quote, leaves the attention products
    out; the last column has them in.
    """
    from ..model_config import read_unet_config
    from ..student.sd14 import SD14_UNET_CONFIG

    config = read_unet_config(teacher) if teacher else SD14_UNET_CONFIG
    length = 77
    if teacher:
        from rcdeploy_runtime.files import read_json

        length = int(read_json(teacher / "text_encoder" / "config.json").get("max_position_embeddings", 77))
    from ..bench.student_table import student_table

    rows = student_table(config, None, length)
    if as_json:
        show_table("", [], rows, as_json=True)
        return
    shown = [
        {
            "student": row["name"],
            "removed": _removed(row),
            "parameters": row["parameters"],
            "GMACs (THOP)": "" if row["macs_thop"] is None else giga_text(row["macs_thop"]),
            "GMACs, all": "" if row["macs_total"] is None else giga_text(row["macs_total"]),
        }
        for row in rows
    ]
    show_table(f"students of {teacher or 'SD-1.4'}", list(shown[0]), shown, as_json=False)


def _removed(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"does not fit: {row['error'].split(': ', 1)[-1]}"
    return "; ".join([row["removed"], *row["notes"]])
