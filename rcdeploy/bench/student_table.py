"""The students of one teacher, with what each lacks, its parameters and its MACs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from ..student.build import build_on_meta
from ..student.spec import STUDENTS, describe_removed, student_config
from .macs import parameters, unet_macs


def student_table(
    teacher_config: Mapping[str, Any], latent_size: int | tuple[int, int] | None = None, text_length: int = 77
) -> list[dict[str, Any]]:
    """One row for the teacher and one for every student, in the order of STUDENTS.

    Args:
        teacher_config: the teacher's UNet config.
        latent_size: in latent pixels, by default the config's sample_size.
        text_length: in tokens.

    Returns:
        Rows of name, removed (text), parameters, macs_thop, macs_total (of one UNet call with a batch of one), notes
        (sentences), error. A student that does not fit has its reason as error and None for its numbers; otherwise
        error is None.

    Raises:
        RcdeployError: the teacher itself cannot be counted.
    """
    rows = [_row("teacher", "-", teacher_config, latent_size, text_length)]
    for name in STUDENTS:
        try:
            config, notes = student_config(name, teacher_config)
        except RcdeployError as error:
            rows.append(_error_row(name, error.message))
            continue
        row = _row(name, describe_removed(name, teacher_config), config, latent_size, text_length)
        rows.append({**row, "notes": notes})
    return rows


def _row(
    name: str,
    removed: str,
    config: Mapping[str, Any],
    latent_size: int | tuple[int, int] | None,
    text_length: int,
) -> dict[str, Any]:
    unet = build_on_meta(config)
    macs = unet_macs(unet, latent_size, text_length)
    return {
        "name": name,
        "removed": removed,
        "parameters": parameters(unet),
        "macs_thop": macs.thop,
        "macs_total": macs.total,
        "notes": [],
        "error": None,
    }


def _error_row(name: str, message: str) -> dict[str, Any]:
    columns = dict.fromkeys(("removed", "parameters", "macs_thop", "macs_total"))
    return {"name": name, **columns, "notes": [], "error": message}
