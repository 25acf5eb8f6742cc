"""rcdeploy students"""

from __future__ import annotations

from pathlib import Path

import typer

from rcdeploy_runtime.errors import RcdeployError

from ..units import giga_text
from .console import show_table
from .options import JSON


def students_command(
    teacher: str = typer.Option(
        "sd-1.4",
        "--teacher",
        metavar="FOLDER|NAME",
        help="The teacher's diffusers folder, or one whose shapes are built in: sd-1.4, sd-2.1-base, sd-2.1, sdxl.",
    ),
    as_json: bool = JSON,
) -> None:
    """List the students of a teacher: what each lacks, its parameters, its multiply-accumulates (MACs) per step.

    MACs are of one UNet step at the teacher's own image size. THOP's count, which papers quote, leaves out the products
    inside attention; the last column includes them.
    """
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
    from ..bench.student_table import student_table

    rows = student_table(config, None, int(text_config.get("max_position_embeddings", 77)))
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
