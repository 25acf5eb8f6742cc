"""The teachers that are known by name: their configs are built in, their weights are not. Imports no torch."""

from __future__ import annotations

import re

from .sd2 import SD21_BASE_CONFIGS, SD21_CONFIGS
from .sd14 import SD14_CONFIGS, Config
from .sdxl import SDXL_CONFIGS
from .spec import STUDENTS

SD14 = "sd-1.4"
SD21_BASE = "sd-2.1-base"
SD21 = "sd-2.1"
SDXL = "sdxl"
TEACHERS: dict[str, dict[str, Config]] = {
    SD14: SD14_CONFIGS,
    SD21_BASE: SD21_BASE_CONFIGS,
    SD21: SD21_CONFIGS,
    SDXL: SDXL_CONFIGS,
}
"""name -> configs of unet, text_encoder (text_encoder_2) and vae"""
DEFAULT_TEACHER = SD14
"""whose students have names without the teacher's"""

# whoever publishes them: SD-2.x was withdrawn by its authors, and lives on in copies
_HUB_NAMES = {
    r".*stable-diffusion-v1.*": SD14,
    r"stable-diffusion-2(-1)?-base": SD21_BASE,
    r"stable-diffusion-2(-1)?": SD21,
    r"stable-diffusion-xl-base.*": SDXL,
}


def named_model(name: str) -> tuple[str, str | None] | None:
    """(teacher, student) of "sd-2.1", "sd-2.1:b-tiny" or "b-tiny" (of SD-1.4); without a student None is the second.

    None for a name that is neither.
    """
    if name in TEACHERS:
        return name, None
    teacher, colon, student = name.rpartition(":")
    teacher = teacher if colon else DEFAULT_TEACHER
    return (teacher, student) if teacher in TEACHERS and student in STUDENTS else None


def built_in_teacher(hub_name: str) -> str | None:
    """The key of TEACHERS whose shapes the model OWNER/NAME on the hub has, going by its name; None if unknown."""
    repository = hub_name.rpartition("/")[2]
    return next((teacher for pattern, teacher in _HUB_NAMES.items() if re.fullmatch(pattern, repository)), None)
