"""What no single key of a recipe can tell: contradictions between keys, missing files, a student that does not fit."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rcdeploy_runtime.errors import RcdeployError

from .model_config import is_hub_name, read_unet_config
from .student.spec import STUDENTS, student_config

FID_FEATURES = 2048
"""of Inception-v3: of so many pictures or fewer, the covariance is singular"""


def cross_errors(sections: dict[str, Any], check_files: bool) -> list[str]:
    """sections: those that are right in themselves, by name. Returns a sentence for each error."""
    errors: list[str] = []
    student, cache, train = (sections.get(name) for name in ("student", "cache", "train"))
    conditioning, loss, prompts = (sections.get(name) for name in ("conditioning", "loss", "prompts"))
    if student:
        errors += _student_errors(student)
    if cache and cache.source == "real" and not cache.images:
        errors.append("cache.images: source = 'real' needs a folder of pictures")
    if cache and cache.source == "teacher" and cache.images:
        errors.append("cache.images: only with source = 'real'; the teacher's own latents need no pictures")
    if train and train.micro_batch_size and train.global_batch_size % train.micro_batch_size:
        errors.append(
            f"train.micro_batch_size: {train.micro_batch_size} does not divide global_batch_size = "
            f"{train.global_batch_size}"
        )
    if conditioning and loss and loss.task and conditioning.probability == "constant" and conditioning.constant == 1:
        errors.append("loss.task: needs true pairs, but conditioning.constant = 1 replaces every text")
    if evaluate := sections.get("evaluate"):
        errors += _evaluate_errors(evaluate, sections.get("teacher"), check_files)
    if check_files:
        if prompts:
            for key, files in prompts.files.items():
                errors += [f"prompts.{key}: {file} is not there" for file in files if not Path(file).exists()]
        if cache and cache.images and not Path(cache.images).is_dir():
            errors.append(f"cache.images: {cache.images} is no folder")
        if "teacher" in sections:
            errors += _teacher_errors(sections["teacher"].path, student)
    return errors


def _student_errors(student: Any) -> list[str]:
    if student.width is None and student.name not in STUDENTS:
        near = difflib.get_close_matches(student.name, STUDENTS, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return [f"student.name: {student.name!r} is none of {', '.join(STUDENTS)}{hint}"]
    channels = student.spec.family == "channel"
    if channels and student.init == "teacher":
        return ["student.init: 'teacher' copies whole tensors, which no channel student has; use 'random' or 'sliced'"]
    if not channels and student.init == "sliced":
        return ["student.init: 'sliced' is for channel students; use 'teacher' or 'random'"]
    return []


def _evaluate_errors(evaluate: Any, teacher: Any, check_files: bool) -> list[str]:
    errors: list[str] = []
    if evaluate.score == "fid":
        for key in ("inception", "reference"):
            if not getattr(evaluate, key):
                errors.append(f"evaluate.{key}: score = 'fid' needs it; `rcdeploy evaluate --help` says what it is")
        if 0 < evaluate.count <= FID_FEATURES:
            errors.append(f"evaluate.count: score = 'fid' needs more than {FID_FEATURES}, or 0 for all prompts")
    if not evaluate.every and (evaluate.score != "validation" or evaluate.keep == "best"):
        errors.append("evaluate.every: 0 evaluates nothing, but score or keep ask for it")
    if check_files:
        named = [(key, getattr(evaluate, key)) for key in ("inception", "reference", "clip")]
        for key, path in [*named, *(("prompt_files", file) for file in evaluate.prompt_files)]:
            if path and not Path(path).exists():
                errors.append(f"evaluate.{key}: {path} is not there")
        if evaluate.score == "judge" and teacher and not (Path(teacher.path) / "judge" / "config.json").is_file():
            errors.append(f"evaluate.score: 'judge' needs a judge, and {teacher.path} has no judge/")
    return errors


def _teacher_errors(path: str, student: Any) -> list[str]:
    if is_hub_name(path):
        return []  # its config is known only when it has been fetched
    try:
        config = read_unet_config(Path(path))
    except RcdeployError as error:
        return [f"teacher.path: {error.message}"]
    if student and (student.width or student.name in STUDENTS):
        try:
            student_config(student.spec, config)
        except RcdeployError as error:
            return [f"student.{'width' if student.width else 'name'}: {error.message}"]
    return []


def said(section: str, model: type[BaseModel], error: Any) -> str:
    """pydantic's error in a sentence that says where, what is allowed, and the nearest right name."""
    where = ".".join([section, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        return f"{where}: no such key{nearest(error['loc'][-1], model.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: this key is needed ({model.model_fields[error['loc'][-1]].description})"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    given = f", not {error['input']!r}" if error["loc"] else ""
    near = ""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = nearest(error["input"], [w.strip("' ") for w in message[10:].replace(" or ", ",").split(",")])
    return f"{where}: {message}{given}{near}"


def nearest(name: Any, allowed: Any) -> str:
    """The end of a sentence about a wrong name: the right one that is most like it, or all."""
    near = difflib.get_close_matches(str(name), list(allowed), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(allowed)}"
