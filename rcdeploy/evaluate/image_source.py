"""Generate the images of an evaluation: with a diffusers folder, a checkpoint of a run, or a package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.package import Package

from .. import checkpoint
from ..diffusers_pipeline import load_pipeline, native_image_size, sample
from ..diffusion_model import LatentDiffusionModel
from ..model_description import ModelDescription
from ..model_folder import ModelFolder
from ..model_index import ModelIndex
from ..recipe import Recipe
from ..sampling import runtime_noise, sample_images
from ..student.spec import student_config
from .target import EvaluationTarget

Generate = Callable[[Sequence[str], Sequence[int], dict[str, Any]], Tensor]
"""n prompts, n seeds, EvaluationSpec.sampling -> images uint8 [n, 3, h, w]"""


@dataclass(frozen=True)
class ImageSource:
    """A loaded model that generates images.

    Attributes:
        name: for folders.
        model: {"kind", "path", "digest", ...} as scores.json records it; the digest is that of its weights.
        size: (height, width) in pixels.
    """

    name: str
    model: dict[str, Any]
    size: tuple[int, int]
    generate: Generate


def open_image_source(target: EvaluationTarget, device: str = "auto") -> ImageSource:
    """Loads the model. device: auto, cpu, cuda. Raises RcdeployError for weights that cannot be loaded."""
    if target.checkpoint is not None:
        return _checkpoint(target.model, target.checkpoint, torch_device(device))
    if target.index is not None:
        return _other_family(target.model, target.index, torch_device(device))
    assert target.description is not None
    if target.package is not None:
        return _package(target.package, target.description, device)
    return _pipeline(target.model, target.description, torch_device(device))


def torch_device(name: str) -> torch.device:
    """auto: the GPU if there is one. Raises RcdeployError for a device that torch cannot use here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RcdeployError(f"torch has no device {name!r} here: {error}", fix="Give --device cpu.") from None
    return device


def _pipeline(model: ModelFolder, description: ModelDescription, device: torch.device) -> ImageSource:
    pipeline = LatentDiffusionModel(str(model.require_pipeline()), dtype=_dtype(device)).to(device)
    pipeline.load("text_encoder", "unet", "vae")
    record = {"kind": model.kind, "path": model.source, "digest": pipeline.revision}
    return ImageSource(model.name, record, description.image_size, sampler(pipeline, description.image_size))


def _other_family(model: ModelFolder, index: ModelIndex, device: torch.device) -> ImageSource:
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else _dtype(device)
    pipeline = load_pipeline(index, device, dtype)
    size = native_image_size(index, pipeline)
    versions = {"pipeline": index.pipeline, "diffusers": diffusers.__version__}
    record = {"kind": model.kind, "path": model.source, "digest": index.revision, **versions}
    return ImageSource(model.name, record, size, partial(sample, index, pipeline, size))


def _checkpoint(model: ModelFolder, name: str, device: torch.device) -> ImageSource:
    assert model.path is not None and model.manifest is not None
    run = model.path
    recipe = Recipe.model_validate(model.manifest.recipe)
    step = checkpoint.find(run, name)
    teacher = LatentDiffusionModel(recipe.teacher.path, revision=recipe.teacher.revision, dtype=_dtype(device))
    teacher.to(device)
    config, _ = student_config(recipe.student_spec, teacher.unet_config)
    unet = checkpoint.ema_unet(run, step, config).to(device, _dtype(device))
    digest = hashlib.sha256(f"{checkpoint.ema_digest(run, step)} {teacher.revision}".encode()).hexdigest()[:16]
    record = {"kind": "checkpoint", "path": model.source, "step": step, "digest": digest}
    _, height, width = teacher.latent_shape()
    size = height * teacher.pixels_per_latent, width * teacher.pixels_per_latent
    schedule = DDIMScheduler.from_config({"clip_sample": False, **model.manifest.noise_schedule})
    return ImageSource(f"{model.name}-step-{step}", record, size, sampler(teacher, size, unet, schedule))


def _package(package: Package, description: ModelDescription, device: str) -> ImageSource:
    from rcdeploy_runtime.session_options import SessionOptions
    from rcdeploy_runtime.text_to_image import TextToImage

    runtime = TextToImage(package, SessionOptions(device), tuned=False)

    def generate(prompts: Sequence[str], seeds: Sequence[int], settings: dict[str, Any]) -> Tensor:
        images, _ = runtime.generate(list(prompts), seed=seeds[0], **{"sampler": "ddim", **settings})
        return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])

    record = {
        "kind": "package",
        "path": description.source,
        "digest": package.manifest.digest,
        "format": package.format,
        "precision": description.precision,
    }
    return ImageSource(description.name, record, description.image_size, generate)


def sampler(
    pipeline: LatentDiffusionModel,
    size: tuple[int, int],
    unet: torch.nn.Module | None = None,
    schedule: DDIMScheduler | None = None,
) -> Generate:
    """Samples with a pipeline, or with `unet` and its other components; start noise as the runtime draws it by seed."""

    def generate(prompts: Sequence[str], seeds: Sequence[int], settings: dict[str, Any]) -> Tensor:
        noise = runtime_noise(pipeline, seeds, size)
        images = sample_images(
            pipeline, prompts, noise, unet=unet, schedule=schedule, batch_size=len(prompts), seeds=seeds, **settings
        )
        if not images.isfinite().all():
            raise RcdeployError(f"an image of {prompts[0]!r} or of the {len(prompts) - 1} prompts after it is NaN")
        return (images * 255).round().to(torch.uint8)

    return generate


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.float16
