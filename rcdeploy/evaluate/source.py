"""Who draws the pictures of an evaluation: a run, one of its checkpoints, a package, or any diffusers folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import NAME, Manifest

from .. import checkpoint
from ..diffusion_model import LatentDiffusionModel
from ..model_description import ModelDescription, describe_model
from ..model_folder import newest_run, resolve
from ..recipe import PATHS, Recipe
from ..sampling import runtime_noise, sample_images
from ..student.spec import student_config

Settings = dict[str, Any]
"""num_inference_steps, guidance_scale"""
Drawing = Callable[[Sequence[str], Sequence[int], Settings], Tensor]
"""n prompts, n seeds, settings -> pictures uint8 [n, 3, h, w]"""


@dataclass(frozen=True)
class Source:
    """name: for folders. model: {"kind", "path", "digest", ...}, the digest that of its weights. size: (height, width)
    in pixels. recipe: what it was made with, as far as it says; of a package without its paths. beside: the folder
    that a judge may stand in. cached_prompts: those of a run's latent cache, if it is still there.
    """

    name: str
    model: dict[str, Any]
    size: tuple[int, int]
    drawing: Drawing
    recipe: dict[str, Any] = field(default_factory=dict)
    beside: Path | None = None
    cached_prompts: Path | None = None

    @property
    def judge(self) -> Path | None:
        folder = self.beside / "judge" if self.beside else None
        return folder if folder and (folder / "config.json").is_file() else None


def open_source(word: str | None, *, at: str | None = None, device: str = "auto") -> Source:
    """word: what to evaluate; None: the newest run under runs/. at: "best", "last" or a step: a run's checkpoint.

    Raises RcdeployError for a word that is nothing that draws.
    """
    word = word or str(newest_run(Path("runs")))
    if at is not None:
        return _checkpoint(Path(word), at, torch_device(device))
    subject = describe_model(resolve(word))
    if subject.folder is None:
        raise RcdeployError(
            f"{word} is the name of a student: it has no weights, and draws nothing",
            fix="Give a run, a package, or a diffusers folder.",
        )
    return _package(subject, device) if subject.kind == "package" else _diffusers(subject, torch_device(device))


def torch_device(word: str) -> torch.device:
    """auto: the GPU where there is one."""
    if word == "auto":
        word = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(word)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RcdeployError(f"torch has no device {word!r} here: {error}", fix="Give --device cpu.") from None
    return device


def _diffusers(subject: ModelDescription, device: torch.device) -> Source:
    teacher = LatentDiffusionModel(str(subject.folder), dtype=_dtype(device)).to(device)
    teacher.load("text_encoder", "unet", "vae")
    model = {"kind": subject.kind, "path": subject.source, "digest": teacher.revision}
    drawing = by_teacher(teacher, subject.image_size)
    if subject.kind != "run":
        return Source(subject.name, model, subject.image_size, drawing, beside=subject.folder)
    manifest = Manifest.read(Path(subject.source), "run")
    recipe, beside = manifest.recipe, Path(manifest.recipe["teacher"]["path"])
    return Source(subject.name, model, subject.image_size, drawing, recipe, beside, _cached_prompts(manifest))


def _cached_prompts(run: Manifest) -> Path | None:
    file = Path(run.facts["cache_folder"]) / "prompts.txt"
    return file if file.is_file() else None


def _checkpoint(run: Path, at: str, device: torch.device) -> Source:
    if not (run / NAME).is_file():
        raise RcdeployError(f"{run} is no run folder: only runs have checkpoints", fix="Leave --checkpoint out.")
    manifest = Manifest.read(run, "run")
    recipe = Recipe.model_validate(manifest.recipe)
    step = checkpoint.find(run, at)
    teacher = LatentDiffusionModel(recipe.teacher.path, revision=recipe.teacher.revision, dtype=_dtype(device)).to(
        device
    )
    config, _ = student_config(recipe.student.spec, teacher.unet_config)
    unet = checkpoint.ema_unet(run, step, config).to(device, _dtype(device))
    weights = hashlib.sha256(f"{checkpoint.ema_digest(run, step)} {teacher.revision}".encode()).hexdigest()[:16]
    model = {"kind": "checkpoint", "path": str(run), "step": step, "digest": weights}
    size, name = _native(teacher), f"{run.resolve().name}-step-{step}"
    drawing, prompts = by_teacher(teacher, size, unet), _cached_prompts(manifest)
    return Source(name, model, size, drawing, recipe.resolved(), Path(recipe.teacher.path), prompts)


def _package(subject: ModelDescription, device: str) -> Source:
    from rcdeploy_runtime.package import Package
    from rcdeploy_runtime.text_to_image import TextToImage

    package = Package(str(subject.folder))
    runtime = TextToImage(package, device)

    def drawing(prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Tensor:
        images, _ = runtime.generate(list(prompts), seed=seeds[0], sampler="ddim", **settings)
        return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])

    said = json.dumps(asdict(package.manifest), sort_keys=True)  # every file's sha256 stands in it
    model = {
        "kind": "package",
        "path": subject.source,
        "digest": hashlib.sha256(said.encode()).hexdigest()[:16],
        "format": package.format,
        "precision": subject.precision,
    }
    # where things lay on the machine that exported it says nothing here
    recipe = {
        section: {k: v for k, v in keys.items() if (section, k) not in PATHS}
        for section, keys in package.manifest.recipe.items()
        if isinstance(keys, dict)
    }
    return Source(subject.name, model, subject.image_size, drawing, recipe)


def by_teacher(teacher: LatentDiffusionModel, size: tuple[int, int], unet: torch.nn.Module | None = None) -> Drawing:
    """Drawing by a teacher's parts, with another UNet if one is given; noise as the runtime makes it of a seed."""

    def drawing(prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Tensor:
        noise = runtime_noise(teacher, seeds, size)
        images = sample_images(teacher, prompts, noise, unet=unet, batch_size=len(prompts), **settings)
        if not images.isfinite().all():
            raise RcdeployError(f"NaN was drawn of {prompts[0]!r} or one of the next {len(prompts) - 1}")
        return (images * 255).round().to(torch.uint8)

    return drawing


def _native(teacher: LatentDiffusionModel) -> tuple[int, int]:
    _, height, width = teacher.latent_shape()
    return height * teacher.pixels_per_latent, width * teacher.pixels_per_latent


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.float16
