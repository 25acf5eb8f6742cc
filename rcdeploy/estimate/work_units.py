"""The units of work that a distillation consists of, as code that runs on the meta device (to be counted, see on_meta)
and on a real one (to be timed) alike. Weights are random: neither needs the teacher's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from ..bench.costs import branches
from ..condition import Condition, added_shapes, predict
from ..decoder.critic import build_critic
from ..decoder.losses import decoder_loss
from ..decoder.network import tiny_config
from ..distill.batches import Batch
from ..distill.features import FeatureRecorder, feature_taps
from ..distill.step import StudentWithProjectors, distillation_loss, make_ema, make_optimizer, optimizer_step
from ..guidance import draw_scales
from ..recipe import Recipe
from ..recipe_stages import Decoder
from ..student.build import build_on_meta, build_student
from ..text_encoding import text_encoders
from ..vae import vae_from_config
from .workload import grid_size

Configs = Mapping[str, Mapping[str, Any]]
TEXT_BATCH_SIZE = 32
"""of the text encoder's call that is counted or timed"""
MIN_TIMED_ROUNDS = 3


@dataclass(frozen=True)
class Unit:
    """One call of a unit of work.

    batch_size: latents, prompts or images that it processes. autocast: whether mixed precision applies to it.
    """

    batch_size: int
    run: Callable[[], Any]
    autocast: bool = False


@dataclass(frozen=True)
class Networks:
    """The networks of a run. text_encoder: one or two of them. dtype: the teacher's and the text encoders'; the student
    is in fp32, as is the VAE."""

    teacher: nn.Module
    student: StudentWithProjectors
    teacher_features: FeatureRecorder
    text_encoder: nn.ModuleList
    vae: Any
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Sizes:
    """latent: its shape [c, h, w]. tokens: of a prompt. micro_batch_size: of a training step."""

    latent: tuple[int, int, int]
    tokens: int
    micro_batch_size: int


def build_networks(
    configs: Configs, student: Mapping[str, Any], recipe: Recipe, device: str, dtype: torch.dtype
) -> Networks:
    """Builds the networks of a run with random weights.

    Args:
        configs: the teacher's, of unet, text_encoder (text_encoder_2) and vae.
        student: the config of the student's UNet.
        recipe: names the losses, and with them the feature taps.
        device: "meta" costs neither memory nor time.
        dtype: of the teacher and the text encoder.
    """
    on_meta = device == "meta"
    teacher = build_on_meta(configs["unet"]) if on_meta else build_student(configs["unet"], 0)
    unet = build_on_meta(student) if on_meta else build_student(student, 0)
    needed = recipe.loss.feature or recipe.loss.frequency
    taps = feature_taps(dict(configs["unet"]), dict(student)) if needed else []
    with torch.random.fork_rng(devices=[]), torch.device(device):
        trained = StudentWithProjectors(unet, taps, gradient_checkpointing=recipe.train.gradient_checkpointing)
        text_encoder = text_encoders(configs)
        vae = vae_from_config(configs["vae"])
    for part in (teacher, text_encoder, vae):
        part.requires_grad_(False).eval().to(device)
    for part in (teacher, text_encoder):
        nn.Module.to(part, dtype)  # diffusers' own would warn
    trained.to(device).train()
    if dtype != torch.float32 and not on_meta:  # accelerate wraps the forward pass so
        trained.forward = torch.autocast(device, dtype)(trained.forward)  # type: ignore[method-assign]
    teacher_features = FeatureRecorder(teacher, [tap.teacher for tap in taps])
    return Networks(teacher, trained, teacher_features, text_encoder, vae, dtype, torch.device(device))


def make_units(networks: Networks, recipe: Recipe, sizes: Sizes) -> dict[str, Unit]:
    """The units of work by name.

    teacher: a sampling step for a batch of the cache. encode: a batch of real images. step: the forward and backward
    pass of a micro-batch. update: optimizer and EMA. text: a batch of prompts. student: a sampling step for a grid of
    sample images. decode: the images of a grid. Where the recipe has such stages, leap: the few-step student's forward
    and backward pass; decoder: a step of the tiny decoder.
    """
    cache_batch_size = recipe.cache.batch_size
    teacher_batch_size = cache_batch_size * branches(recipe.cache.guidance_scale)
    grid_images = grid_size(recipe)
    student_batch_size = grid_images * branches(
        recipe.student_sampling.guidance_scale, recipe.distill.takes_guidance_scale
    )
    vae = networks.vae
    device = networks.device
    _, height, width = sizes.latent
    pixels_per_latent = 2 ** (len(vae.config.block_out_channels) - 1)
    image_shape = (vae.config.in_channels, height * pixels_per_latent, width * pixels_per_latent)
    tokens = torch.zeros(TEXT_BATCH_SIZE, sizes.tokens, dtype=torch.long, device=device)
    latents = torch.zeros(grid_images, *sizes.latent, device=device)

    def encode() -> Any:
        return vae.encode(torch.zeros(cache_batch_size, *image_shape, device=device))

    no_grad = torch.no_grad()
    further = {}
    if recipe.few_steps:
        leap = _unet_call(networks, networks.student.unet, sizes.micro_batch_size, sizes)
        further["leap"] = Unit(sizes.micro_batch_size, lambda: leap().float().mean().backward(), autocast=True)
    if recipe.decoder:
        further["decoder"] = Unit(recipe.decoder.batch_size, _decoder_step(networks, recipe.decoder, sizes))
    return {
        "teacher": Unit(teacher_batch_size, no_grad(_unet_call(networks, networks.teacher, teacher_batch_size, sizes))),
        "encode": Unit(cache_batch_size, no_grad(encode)),
        "step": Unit(sizes.micro_batch_size, _forward_and_backward(networks, recipe, sizes), autocast=True),
        "update": Unit(1, _update(networks, recipe)),
        "text": Unit(TEXT_BATCH_SIZE, no_grad(lambda: [encoder(tokens) for encoder in networks.text_encoder])),
        "student": Unit(
            student_batch_size,
            no_grad(_unet_call(networks, networks.student.unet, student_batch_size, sizes)),
            autocast=True,
        ),
        "decode": Unit(grid_images, no_grad(lambda: vae.decode(latents))),
        **further,
    }


def tiny_decoder(vae_config: Mapping[str, Any], section: Decoder, device: torch.device) -> AutoencoderTiny:
    """With random weights. Raises RcdeployError for sections that do not fit the VAE."""
    config = tiny_config({**vae_config, "_class_name": "AutoencoderKL"}, section)
    with torch.random.fork_rng(devices=[]), device:
        network: AutoencoderTiny = AutoencoderTiny.from_config(config)
    return network


def _decoder_step(networks: Networks, section: Decoder, sizes: Sizes) -> Callable[[], None]:
    """On whole latents, or on crops if the recipe says so."""
    vae = networks.vae
    teacher = SimpleNamespace(vae=vae, scaling_factor=float(vae.config.scaling_factor))
    network = tiny_decoder(dict(vae.config), section, networks.device).train()
    critic = build_critic(3, 0).to(networks.device) if section.adversarial else None
    channels, height, width = sizes.latent
    if section.crop:
        height, width = min(height, section.crop), min(width, section.crop)
    pixels = 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.ones(section.batch_size, channels, height, width, device=networks.device)
    images = torch.ones(section.batch_size, 3, height * pixels, width * pixels, device=networks.device)

    def run() -> None:
        loss, _ = decoder_loss(network, teacher, latents, images, section, critic)
        loss.backward()

    return run


def time_units(units: Mapping[str, Unit], device: torch.device, seconds: float) -> dict[str, float]:
    """Mean seconds of a call of each unit: in turns, for about `seconds` in all; the first round is not counted.

    The mean and not the median: a long run has to wait for the machine's other work as well.
    """
    times: dict[str, list[float]] = {name: [] for name in units}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_TIMED_ROUNDS or time.perf_counter() < end:
        for name, unit in units.items():
            start = time.perf_counter()
            unit.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.fmean(each[1:]) for name, each in times.items()}


def _zero_condition(networks: Networks, batch_size: int, tokens: int) -> Condition:
    config: Any = networks.teacher.config

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=networks.dtype, device=networks.device)

    added = {name: zeros(*shape) for name, shape in added_shapes(config, batch_size).items()}
    return Condition(zeros(batch_size, tokens, int(config.cross_attention_dim)), added)


def _unet_call(networks: Networks, unet: nn.Module, batch_size: int, sizes: Sizes) -> Callable[[], Tensor]:
    device = networks.device
    latents = torch.zeros(batch_size, *sizes.latent, dtype=networks.dtype, device=device)
    timesteps = torch.zeros(batch_size, dtype=torch.long, device=device)
    condition = _zero_condition(networks, batch_size, sizes.tokens).with_guidance(None, unet)
    in_half = networks.dtype != torch.float32 and device.type != "meta" and unet is networks.student.unet

    def run() -> Tensor:
        with torch.autocast(device.type, networks.dtype) if in_half else nullcontext():
            return predict(unet, latents, timesteps, condition)

    return run


def _forward_and_backward(networks: Networks, recipe: Recipe, sizes: Sizes) -> Callable[[], None]:
    batch_size = sizes.micro_batch_size
    latents = torch.ones(batch_size, *sizes.latent, device=networks.device)
    timesteps = torch.ones(batch_size, dtype=torch.long, device=networks.device)
    condition = _zero_condition(networks, batch_size, sizes.tokens)
    batch = Batch(latents, timesteps, torch.zeros_like(timesteps), condition, condition.take([0]), latents, latents)
    guidance_scale = draw_scales(recipe.distill.guidance_scale, 0, 0, range(batch_size))
    unet = networks.student.unet

    def run() -> None:
        loss, _ = distillation_loss(
            networks.student, networks.teacher, networks.teacher_features, batch, recipe.loss, guidance_scale, unet
        )
        loss.backward()

    return run


def _update(networks: Networks, recipe: Recipe) -> Callable[[], None]:
    """Clipping, AdamW and EMA. Optimizer and EMA are created when it first runs, as they take memory."""
    student = networks.student
    created: list[Any] = []

    def run() -> None:
        if not created:
            created.append(make_optimizer(student, recipe.train))
            created.append(make_ema(student, recipe.train))
        optimizer, ema = created
        for parameter in student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer_step(student, optimizer, ema, recipe.train.max_grad_norm)

    return run
