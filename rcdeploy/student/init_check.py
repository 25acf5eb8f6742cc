"""Whether a student's first weights can be taken from its teacher, decided from the two configs, without torch.

init.initialise finds the same by comparing every tensor; this is for checking a recipe before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .sd14 import SD14_UNET_CONFIG
from .spec import StudentSpec, student_config


def init_problem(method: str, spec: StudentSpec, teacher_config: Mapping[str, Any]) -> str | None:
    """Why `student.init = method` is impossible for this student and teacher; None if it is possible.

    Args:
        method: random, teacher or sliced.
        spec: a student that fits the teacher (student_config raises otherwise).
        teacher_config: the teacher's UNet config.

    Returns:
        A sentence that starts with the recipe's key.
    """
    if method == "random":
        return None
    config, _ = student_config(spec, teacher_config)
    student_widths: list[int] = list(config["block_out_channels"])
    teacher_widths: list[int] = list(teacher_config.get("block_out_channels") or SD14_UNET_CONFIG["block_out_channels"])
    return (
        _copy_problem(student_widths, teacher_widths)
        if method == "teacher"
        else _slice_problem(student_widths, teacher_widths)
    )


def _copy_problem(student_widths: Sequence[int], teacher_widths: Sequence[int]) -> str | None:
    stages = len(student_widths)
    if list(student_widths) != list(teacher_widths[:stages]):
        return (
            f"student.init: 'teacher' copies whole tensors, but the student's stages have {_joined(student_widths)} "
            f"channels and the teacher's {_joined(teacher_widths)}; use init = 'random' or 'sliced'"
        )
    return _innermost_problem("teacher", stages, teacher_widths)


def _innermost_problem(method: str, stages: int, teacher_widths: Sequence[int]) -> str | None:
    if stages < len(teacher_widths) and teacher_widths[stages] != teacher_widths[stages - 1]:
        return (
            f"student.init: {method!r} needs the teacher's layers, but without the teacher's innermost stage "
            f"({teacher_widths[stages]} channels) the student's innermost up block reads "
            f"{teacher_widths[stages - 1]} channels; use init = 'random'"
        )
    return None


def _slice_problem(student_widths: Sequence[int], teacher_widths: Sequence[int]) -> str | None:
    stages = len(student_widths)
    if problem := _innermost_problem("sliced", stages, teacher_widths):
        return problem
    # a resnet between stages of different widths has a shortcut convolution, which one between equal widths lacks
    for stage, (student_pair, teacher_pair) in enumerate(
        zip(_pairs(student_widths), _pairs(teacher_widths[:stages]), strict=True)
    ):
        if (student_pair[0] == student_pair[1]) != (teacher_pair[0] == teacher_pair[1]):
            return (
                f"student.init: 'sliced' needs the teacher's layers, but stages {stage} and {stage + 1} have "
                f"{_joined(student_pair)} channels in the student and {_joined(teacher_pair)} in the teacher, so that "
                "one of the two has a shortcut convolution between them; use init = 'random', or another width"
            )
    return None


def _pairs(widths: Sequence[int]) -> list[Sequence[int]]:
    return [widths[i : i + 2] for i in range(len(widths) - 1)]


def _joined(widths: Sequence[int]) -> str:
    return "/".join(map(str, widths))
