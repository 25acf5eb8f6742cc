"""The one-layer-out error: how far the teacher's prediction moves when one part of its UNet is left out.

LAPTOP-Diff (Zhang et al., arXiv 2404.11098) chooses a student's layers by it: the squared error of several removed
layers is found to be about the sum of their single errors. by_error.py builds on that; here the errors are measured.
Nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

from ..condition import Condition, predict
from ..diffusion_model import LatentDiffusionModel
from ..progress import Progress
from ..prompts.readers import batches, files_of
from ..random_streams import CALIBRATION
from ..sampling import check_signal, starting_noise
from ..student.build import build_on_meta
from ..student.init import share_weights
from ..student.init_check import init_problem
from ..student.rules import layers_of
from ..student.spec import STUDENTS, StudentSpec, student_config
from .budget import Candidate
from .macs import parameters, unet_macs

STEPS = 10
"""DDIM steps in which the teacher samples"""
MEASURE_EVERY = 2
"""of these steps one in so many is measured, the first too"""
LATENTS_AT_ONCE = 2 * 64 * 64
"""latent pixels in one batch, to bound memory"""
SHALLOWER = {"b-small": "mid block", "b-tiny": "mid block and innermost stage"}
"""Named students by what they lack besides layers. The mid block lies below the innermost stage, so that the stage goes
with it, as in BK-SDM: alone it would leave the mid block to maps of twice the side."""


@dataclass(frozen=True)
class Part:
    """What a block student may lack: layers of one stage's blocks (down and up), or what SHALLOWER lists.

    Attributes:
        key: (stage, layers left in its blocks), or a name of SHALLOWER. Parts of one stage exclude each other, and so
            do those of SHALLOWER.
        config: of the student that lacks this part alone.
        parameters, macs: what is saved by it.
        error: relative error of the teacher's prediction without it, measured on its own; nan before that.
    """

    key: tuple[int, int] | str
    name: str
    config: Mapping[str, Any]
    parameters: int
    macs: int
    error: float = math.nan


@dataclass(frozen=True)
class Prediction:
    """noisy_latents x_t [n, c, h, w] that the teacher met while sampling, and what it predicted there (output)."""

    noisy_latents: Tensor
    timestep: Tensor
    condition: Condition
    output: Tensor


def block_spec(name: str, layers: Sequence[int]) -> StudentSpec:
    """b-base, b-small or b-tiny with layers of each stage in place of its single one."""
    return replace(STUDENTS[name], single_layer=False, layers=tuple(layers))


def counted_teacher(
    teacher_config: Mapping[str, Any], latent_size: int | tuple[int, int] | None, text_length: int
) -> Candidate:
    """The teacher itself, its config complete. Raises RcdeployError when it cannot be counted."""
    unet = build_on_meta(teacher_config)
    macs = unet_macs(unet, latent_size, text_length).total
    return Candidate("teacher", (), dict(unet.config), parameters(unet), macs)


def removable_parts(teacher: Candidate, latent_size: int | tuple[int, int] | None, text_length: int) -> list[Part]:
    """The parts that a student of this teacher may lack and still begin with its weights, counted; not yet measured.

    Raises RcdeployError when there is none.
    """
    layers = layers_of(teacher.config)
    kinds: list[tuple[tuple[int, int] | str, str, StudentSpec]] = []
    for stage, count in enumerate(layers):
        for left in range(count - 1, 0, -1):
            spec = block_spec("b-base", [*layers[:stage], left, *layers[stage + 1 :]])
            kinds.append(((stage, left), f"stage {stage}: {count - left} of {count} layers", spec))
    for student, name in SHALLOWER.items():
        kinds.append((student, name, block_spec(student, layers[:-1] if student == "b-tiny" else layers)))
    parts = []
    problems = []
    for key, name, spec in kinds:
        try:
            config, _ = student_config(spec, teacher.config)
        except RcdeployError as error:
            problems.append(f"{name}: {error.message}")
            continue
        if problem := init_problem("teacher", spec, teacher.config):
            problems.append(f"{name}: {problem}")
        else:
            unet = build_on_meta(config)
            macs = unet_macs(unet, latent_size, text_length).total
            parts.append(Part(key, name, config, teacher.parameters - parameters(unet), teacher.macs - macs))
    if not parts:
        raise RcdeployError(
            "this teacher has one layer a block, or no part of it can be removed",
            errors=problems,
            fix="Without --by-error channels are removed too.",
        )
    return parts


def captions(teacher_folder: Path, file: Path | None, count: int) -> list[str]:
    """`count` prompts, or fewer where there are fewer, evenly over the file or over the captions beside the teacher.

    Raises RcdeployError when neither has any.
    """
    beside = [teacher_folder / name for name in ("captions.txt", "captions.txt.gz")]
    sources = [file] if file else [path for path in beside if path.is_file()][:1]
    rows = [row for source in sources for row in next(batches(files_of(source)), []) if row.strip()]
    if not rows:
        raise RcdeployError(
            f"no captions: {f'{file} holds none' if file else f'none lie beside {teacher_folder}'}",
            fix="Name a file of prompts as they will be used: --prompts captions.txt (or .csv, .jsonl, .parquet).",
        )
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


@torch.no_grad()
def teacher_predictions(
    teacher: LatentDiffusionModel, prompts: Sequence[str], latent_size: tuple[int, int] | None, progress: Progress
) -> list[Prediction]:
    """What the teacher predicts on its own way from noise to an image: DDIM in STEPS, no guidance, fixed seeds."""
    channels, *native = teacher.latent_shape()
    shape = (channels, *(latent_size or native))
    schedule = DDIMScheduler.from_config(teacher.schedule.config)
    schedule.set_timesteps(STEPS)
    check_signal(schedule, int(schedule.timesteps[0]))
    batch_size = max(1, LATENTS_AT_ONCE // (shape[1] * shape[2]))
    found = []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        condition = teacher.encode_prompts([prompts[i] for i in rows], shape[1:])
        x = starting_noise(0, rows, shape, CALIBRATION).to(teacher.device)
        for step, t in enumerate(schedule.timesteps.to(teacher.device)):
            output = predict(teacher.unet, x, t.expand(len(x)), condition)
            if step % MEASURE_EVERY == 0:
                found.append(Prediction(x, t, condition, output))
            x = schedule.step(output, t, x).prev_sample
        progress("teacher's predictions", rows.stop, len(prompts))
    return found


@torch.no_grad()
def relative_error(
    teacher: LatentDiffusionModel, config: Mapping[str, Any], predictions: Sequence[Prediction]
) -> float:
    """Sum of |student's prediction - teacher's|^2 over the sum of |teacher's|^2, over all predictions and elements.

    The student of this config has the teacher's weights (init 'teacher'), and shares its memory. Raises RcdeployError
    when they do not fit, and when the teacher predicts nothing but zeros.
    """
    unet = build_on_meta(config)
    share_weights(unet, teacher.unet)
    difference = size = 0.0
    for known in predictions:
        timesteps = known.timestep.expand(len(known.noisy_latents))
        output = predict(unet, known.noisy_latents, timesteps, known.condition)
        difference += float((output - known.output).double().square().sum())
        size += float(known.output.double().square().sum())
    if not size or not math.isfinite(difference / size):
        raise RcdeployError(
            f"{teacher.folder}: its predictions are zero or not finite, nothing can be compared to them"
        )
    return difference / size


def measured(
    parts: Sequence[Part], teacher: LatentDiffusionModel, predictions: Sequence[Prediction], progress: Progress
) -> list[Part]:
    """The parts with their errors, each removed alone."""
    results = []
    for number, part in enumerate(parts):
        results.append(replace(part, error=relative_error(teacher, part.config, predictions)))
        progress("parts removed alone", number + 1, len(parts))
    return results
