"""Checks of a recipe across keys: contradictions, missing files, a student that does not fit its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

from .judge_files import judge_of
from .model_config import is_hub_name, read_unet_config
from .recipe import HUB_NAMES, Cache, Evaluate, Prompts, Teacher, Train
from .recipe_stages import Export, FewSteps
from .recipe_student import Student
from .student.init_check import init_problem
from .student.spec import STUDENTS, student_config
from .toml_files import nearest_name

INCEPTION_FEATURES = 2048
"""An FID of this many images or fewer has a singular covariance."""


def check_sections(sections: Mapping[str, Any], check_files: bool) -> list[str]:
    """The errors between keys, a sentence each.

    Args:
        sections: by name, those that are valid in themselves.
        check_files: also check that teacher, prompts and weights exist.
    """
    errors: list[str] = []
    checks: list[tuple[str, Callable[[Any], list[str]]]] = [
        ("student", _student_errors),
        ("cache", _cache_errors),
        ("train", _train_errors),
        ("evaluate", _evaluate_errors),
        ("export", _export_errors),
    ]
    if check_files:
        checks += [
            ("prompts", _prompt_file_errors),
            ("cache", _cache_file_errors),
            ("evaluate", _evaluate_file_errors),
        ]
    for name, check in checks:
        if name in sections:
            errors += check(sections[name])
    conditioning, loss = sections.get("conditioning"), sections.get("loss")
    if conditioning and loss and loss.task and conditioning.probability == "constant" and conditioning.constant == 1:
        errors.append("loss.task: needs paired prompts, but conditioning.constant = 1 replaces every prompt")
    teacher = sections.get("teacher")
    if teacher and check_files:
        errors += _teacher_errors(teacher, sections.get("student"))
        if "few_steps" in sections:
            errors += _few_steps_errors(sections["few_steps"], teacher)
        if "evaluate" in sections:
            errors += _judge_errors(sections["evaluate"], teacher)
    return errors


def _student_errors(student: Student) -> list[str]:
    if student.name not in STUDENTS:
        allowed = ", ".join(STUDENTS)
        return [f"student.name: {student.name!r} is none of {allowed}{nearest_name(student.name, STUDENTS)}"]
    try:
        is_narrower = student.spec.width < 1
    except RcdeployError as error:
        return [f"student.layers: {error.message}. {error.fix}"]
    if is_narrower and student.init == "teacher":
        return ["student.init: 'teacher' copies whole tensors, and this student has fewer channels; use 'sliced'"]
    if not is_narrower and student.init == "sliced":
        return ["student.init: 'sliced' is for students with fewer channels; use 'teacher' or 'random'"]
    return []


def _cache_errors(cache: Cache) -> list[str]:
    if cache.source == "real" and not cache.images:
        return ["cache.images: source = 'real' needs a folder of images"]
    if cache.source == "teacher" and cache.images:
        return ["cache.images: only with source = 'real'; the teacher's own latents need no images"]
    return []


def _cache_file_errors(cache: Cache) -> list[str]:
    if cache.images and not Path(cache.images).is_dir():
        return [f"cache.images: {cache.images} is not a folder"]
    return []


def _train_errors(train: Train) -> list[str]:
    if train.micro_batch_size and train.global_batch_size % train.micro_batch_size:
        return [
            f"train.micro_batch_size: {train.micro_batch_size} does not divide global_batch_size = "
            f"{train.global_batch_size}"
        ]
    return []


def _prompt_file_errors(prompts: Prompts) -> list[str]:
    return [
        f"prompts.{key}: {file} does not exist"
        for key, files in prompts.files.items()
        for file in files
        if not Path(file).exists()
    ]


def _evaluate_errors(evaluate: Evaluate) -> list[str]:
    errors: list[str] = []
    if evaluate.score == "fid":
        for key in ("inception", "reference"):
            if not getattr(evaluate, key):
                errors.append(f"evaluate.{key}: score = 'fid' needs it; see `rcdeploy evaluate --help`")
        if 0 < evaluate.count <= INCEPTION_FEATURES:
            errors.append(f"evaluate.count: score = 'fid' needs more than {INCEPTION_FEATURES}, or 0 for all prompts")
    if not evaluate.every and (evaluate.score != "validation" or evaluate.keep == "best"):
        errors.append("evaluate.every: 0 never evaluates, but score or keep need an evaluation")
    return errors


def _evaluate_file_errors(evaluate: Evaluate) -> list[str]:
    paths = [(key, getattr(evaluate, key)) for key in ("inception", "reference", "clip")]
    paths += [("prompt_files", file) for file in evaluate.prompt_files]
    return [
        f"evaluate.{key}: {path} does not exist"
        for key, path in paths
        if path and not Path(path).exists() and not (("evaluate", key) in HUB_NAMES and is_hub_name(path))
    ]


def _judge_errors(evaluate: Evaluate, teacher: Teacher) -> list[str]:
    if evaluate.score == "judge" and judge_of(Path(teacher.path)) is None:
        return [f"evaluate.score: 'judge' needs a judge, and {teacher.path} has no judge/"]
    return []


def _export_errors(export: Export) -> list[str]:
    if export.size and not export.static:
        return ["export.size: only with static = true; other packages generate any size that the model can"]
    return []


def _few_steps_errors(few_steps: FewSteps, teacher: Teacher) -> list[str]:
    """Every step of the student leaps over as many timesteps of the teacher's schedule."""
    file = Path(teacher.path) / "scheduler" / "scheduler_config.json"
    T = read_json(file).get("num_train_timesteps", 1000) if file.is_file() else 1000
    n = few_steps.num_inference_steps
    if not isinstance(T, int) or T % n == 0:
        return []
    divisors = ", ".join(str(k) for k in range(1, 11) if T % k == 0)
    return [f"few_steps.num_inference_steps: {n} does not divide the teacher's {T:,} timesteps; use one of {divisors}"]


def _teacher_errors(teacher: Teacher, student: Student | None) -> list[str]:
    if is_hub_name(teacher.path):
        return []  # its config is known only when it has been fetched
    try:
        config = read_unet_config(Path(teacher.path))
    except RcdeployError as error:
        return [f"teacher.path: {error}"]  # with the lines that import a single file
    if student and not _student_errors(student):
        try:
            student_config(student.spec, config)
        except RcdeployError as error:
            key = next((key for key in ("layers", "width") if getattr(student, key)), "name")
            return [f"student.{key}: {error.message}"]
        if problem := init_problem(student.first_weights, student.spec, config):
            return [problem]
    return []
