"""The pieces of work that a distillation is made of, as code that runs on the meta device (to be counted, see on_meta)
and on a real one (to be timed) alike. Weights are random: for neither are the teacher's needed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..bench.costs import branches
from ..diffusion_model import Condition, predict
from ..distill.batches import Batch
from ..distill.features import FeatureRecorder, feature_taps
from ..distill.step import StudentWithProjectors, distillation_loss, make_ema, make_optimizer, optimizer_step
from ..recipe import Recipe
from ..student.build import build_on_meta, build_student
from .workload import PICTURES

Configs = Mapping[str, Mapping[str, Any]]
PROMPTS = 32
"""of a text encoder's call that is counted or timed"""


@dataclass(frozen=True)
class Unit:
    """One piece of work on `rows` rows: latents, prompts or pictures. mixed: autocast is on, if the recipe wants it."""

    rows: int
    run: Callable[[], Any]
    mixed: bool = False


@dataclass(frozen=True)
class Networks:
    """What a run holds. dtype: the teacher's and the text encoder's; the student is in fp32, as is the VAE."""

    teacher: nn.Module
    student: StudentWithProjectors
    teacher_features: FeatureRecorder
    text_encoder: Any
    vae: Any
    dtype: torch.dtype
    device: torch.device


def build_networks(
    configs: Configs, student: Mapping[str, Any], recipe: Recipe, device: str, dtype: torch.dtype
) -> Networks:
    """configs: of unet, text_encoder and vae; student: of its UNet. On "meta" it costs neither memory nor time."""
    on_meta = device == "meta"
    teacher = build_on_meta(configs["unet"]) if on_meta else build_student(configs["unet"], 0)
    unet = build_on_meta(student) if on_meta else build_student(student, 0)
    taps = feature_taps(dict(configs["unet"]), dict(student)) if recipe.loss.feature else []
    with torch.random.fork_rng(devices=[]), torch.device(device):
        trained = StudentWithProjectors(unet, taps, gradient_checkpointing=recipe.train.gradient_checkpointing)
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(dict(configs["text_encoder"])))
        vae = AutoencoderKL.from_config({k: v for k, v in configs["vae"].items() if not k.startswith("_")})
    for part in (teacher, text_encoder, vae):
        part.requires_grad_(False).eval().to(device)
    for part in (teacher, text_encoder):
        nn.Module.to(part, dtype)  # diffusers' own would warn
    trained.to(device).train()
    if dtype != torch.float32 and not on_meta:  # accelerate wraps the forward pass so
        trained.forward = torch.autocast(device, dtype)(trained.forward)  # type: ignore[method-assign]
    teacher_features = FeatureRecorder(teacher, [tap.teacher for tap in taps])
    return Networks(teacher, trained, teacher_features, text_encoder, vae, dtype, torch.device(device))


def make_units(n: Networks, recipe: Recipe, shape: tuple[int, int, int], length: int, micro: int) -> dict[str, Unit]:
    """shape: of a latent [c, h, w]; length: tokens of a prompt; micro: samples of a step at once.

    teacher: a sampling step of a batch of the cache; encode: a batch of real pictures; step: the forward and backward
    pass of a micro batch; update: optimizer and EMA; text: prompts; student: a sampling step of a grid; decode: the
    pictures of a grid.
    """
    sampled = recipe.cache.batch_size * branches(recipe.cache.guidance_scale)
    pictures = len(recipe.evaluate.prompts) or PICTURES
    drawn = pictures * branches(recipe.evaluate.guidance_scale)
    edge = 2 ** (len(n.vae.config.block_out_channels) - 1)
    images = torch.zeros(
        recipe.cache.batch_size, n.vae.config.in_channels, shape[1] * edge, shape[2] * edge, device="meta"
    )
    tokens = torch.zeros(PROMPTS, length, dtype=torch.long, device=n.device)
    latents = torch.zeros(pictures, *shape, device=n.device)
    without = torch.no_grad()
    return {
        "teacher": Unit(sampled, without(_call(n, n.teacher, sampled, shape, length))),
        "encode": Unit(len(images), without(lambda: n.vae.encode(torch.zeros_like(images, device=n.device)))),
        "step": Unit(micro, _step(n, recipe, shape, length, micro), mixed=True),
        "update": Unit(1, _update(n, recipe)),
        "text": Unit(PROMPTS, without(lambda: n.text_encoder(tokens))),
        "student": Unit(drawn, without(_call(n, n.student.unet, drawn, shape, length)), mixed=True),
        "decode": Unit(pictures, without(lambda: n.vae.decode(latents))),
    }


def time_units(units: Mapping[str, Unit], device: torch.device, seconds: float) -> dict[str, float]:
    """Mean seconds of a run of each: in turns, after a round that is not counted, for about `seconds` in all.

    The mean and not the median: what else the machine has to do, a long run has to wait for as well.
    """
    taken: dict[str, list[float]] = {name: [] for name in units}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for name, unit in units.items():
            start = time.perf_counter()
            unit.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.fmean(each[1:]) for name, each in taken.items()}


def _condition(n: Networks, rows: int, length: int) -> Condition:
    return Condition(torch.zeros(rows, length, n.text_encoder.config.hidden_size, dtype=n.dtype, device=n.device))


def _call(n: Networks, unet: nn.Module, rows: int, shape: tuple[int, int, int], length: int) -> Callable[[], Tensor]:
    latents = torch.zeros(rows, *shape, dtype=n.dtype, device=n.device)
    timesteps, condition = torch.zeros(rows, dtype=torch.long, device=n.device), _condition(n, rows, length)
    half = n.dtype != torch.float32 and n.device.type != "meta" and unet is n.student.unet

    def run() -> Tensor:
        with torch.autocast(n.device.type, n.dtype) if half else nullcontext():
            return predict(unet, latents, timesteps, condition)

    return run


def _step(n: Networks, recipe: Recipe, shape: tuple[int, int, int], length: int, micro: int) -> Callable[[], None]:
    """The forward and backward pass of a training step."""
    latents = torch.ones(micro, *shape, device=n.device)
    timesteps = torch.ones(micro, dtype=torch.long, device=n.device)
    batch = Batch(latents, timesteps, torch.zeros_like(timesteps), _condition(n, micro, length), target=latents)

    def run() -> None:
        loss, _ = distillation_loss(n.student, n.teacher, n.teacher_features, batch, recipe.loss)
        loss.backward()

    return run


def _update(n: Networks, recipe: Recipe) -> Callable[[], None]:
    """Clipping, AdamW and EMA. Optimizer and EMA are made when it first runs, as they take memory."""
    made: list[Any] = []

    def run() -> None:
        if not made:
            made.append(make_optimizer(n.student, recipe.train))
            made.append(make_ema(n.student, recipe.train))
        for parameter in n.student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer_step(n.student, made[0], made[1], recipe.train.max_grad_norm)

    return run
