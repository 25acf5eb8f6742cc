"""rcdeploy students"""

from __future__ import annotations

from pathlib import Path

import typer

from ..units import giga_text
from .console import show_table
from .options import JSON


def students_command(
    teacher: Path | None = typer.Option(
        None, "--teacher", help="The teacher's diffusers folder.", show_default="SD-1.4, which is built in"
    ),
    as_json: bool = JSON,
) -> None:
    """List the students of a teacher: what each lacks, its parameters, its multiply-accumulates (MACs) per step.

    MACs are of one UNet step at the teacher's own image size. THOP's count, which papers quote, leaves out the products
    inside attention; the last column includes them.
    """
    from ..model_config import read_unet_config
    from ..student.sd14 import SD14_UNET_CONFIG

    config = read_unet_config(teacher) if teacher else SD14_UNET_CONFIG
    text_length = 77
    if teacher:
        from rcdeploy_runtime.files import read_json

        text_length = int(read_json(teacher / "text_encoder" / "config.json").get("max_position_embeddings", 77))
    from ..bench.student_table import student_table

    rows = student_table(config, None, text_length)
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
    show_table(f"Students of {teacher or 'SD-1.4'}", list(table[0]), table, as_json=False)
