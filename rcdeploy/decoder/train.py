"""Trains a tiny decoder from a latent cache and the teacher's VAE: no picture, no downloaded weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.training_utils import EMAModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder, write_json
from rcdeploy_runtime.manifest import NAME, Manifest

from .. import cache_latents, checkpoint, plots
from ..diffusion_model import LatentDiffusionModel
from ..distill.loop import StepTimer, Stopped, learning_rate_schedule, stop_signals
from ..distill.train_state import TrainState
from ..latent_cache import LatentCache
from ..machine import describe
from ..progress import Log, Progress
from ..prompts.recipe_pool import paired_sources
from ..recipe import Recipe, digest
from ..recipe_stages import Decoder
from ..run_folder import MetricsFile, check_sources, exclusive
from .critic import NetworkAndCritic, PatchCritic, build_critic
from .folder import VAE, DecoderFacts, vae_digest
from .losses import decoder_loss, pixel_loss
from .network import build_tiny, tiny_config
from .pairs import PairMaker

CHANGEABLE = ("max_steps", "checkpoint_every", "log_every", "target_cache_gb")
"""keys of [decoder] that may change when a training is continued"""
CRITIC_BETAS = (0.5, 0.9)
"""of Adam: what a critic learnt long ago is out of date"""
KEPT_CHECKPOINTS = 2
SCORE = "validation"
SAMPLES = 8


@dataclass(frozen=True)
class Training:
    """What a training works with; its progress is a TrainState."""

    recipe: Recipe
    section: Decoder
    folder: Path
    teacher: LatentDiffusionModel
    cache: LatentCache
    pairs: PairMaker
    network: AutoencoderTiny
    critic: PatchCritic | None
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel

    def save_checkpoint(self, state: TrainState) -> None:
        saved = state.as_json(state.reduced_sums(lambda sums: sums), SCORE)
        checkpoint.save(self.folder, self.model, self.optimizer, self.ema, None, saved)
        checkpoint.prune(self.folder, KEPT_CHECKPOINTS, None)

    def load_checkpoint(self, log: Log) -> TrainState:
        """Restores the newest whole checkpoint; a new state where there is none."""
        step = checkpoint.newest_whole(self.folder, log)
        if step is None:
            return TrainState()
        saved = checkpoint.load(self.folder, step, self.model, self.optimizer, self.ema, None)
        log(f"continuing from step {step:,}")
        return TrainState.from_json(saved, SCORE, self.teacher.device)


def train_decoder(recipe: Recipe, folder: Path, progress: Progress, log: Log) -> Path:
    """Trains the recipe's [decoder] in `folder`, or continues there; a finished one is left as it is.

    Fills the latent cache where it is not complete. Returns the AutoencoderTiny folder.

    Raises:
        RcdeployError: for bad input, another recipe's folder, divergence, and another process at work there.
        Stopped: on Ctrl-C and SIGTERM, after a checkpoint.
    """
    if recipe.decoder is None:
        raise RcdeployError(
            "the recipe has no section [decoder]", fix="Add it: [decoder] alone takes TAESD's network and defaults."
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RcdeployError("a tiny decoder is trained by one process", fix="Run it without accelerate launch.")
    with exclusive(folder):
        return _train_decoder(recipe, recipe.decoder, folder, progress, log)


def _train_decoder(recipe: Recipe, section: Decoder, folder: Path, progress: Progress, log: Log) -> Path:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = LatentDiffusionModel(recipe.teacher.path, revision=recipe.teacher.revision).to(device)
    config = tiny_config(teacher.vae_config, section)
    _check_crop(section, teacher, recipe.cache.resolution)
    resumed = (folder / NAME).is_file()
    if resumed:
        _check_recipe(folder, section)
        check_sources(Manifest.read(folder, "decoder"), {"teacher": teacher.revision})
    teacher.load("vae")  # unusable weights should show before hours of sampling
    cache = cache_latents.fill(
        cache_latents.prepare(recipe, teacher, paired_sources(recipe, log), log), recipe.cache, teacher, progress, log
    )
    sources = {"latent_cache": digest(cache.facts.identity), "teacher": teacher.revision}
    if resumed:
        manifest = Manifest.read(folder, "decoder")
        check_sources(manifest, sources)
        facts = manifest.facts_as(DecoderFacts)
        if facts.finished and facts.steps == section.max_steps and not manifest.wrong_files(folder):
            return folder / VAE
    network = build_tiny(config, section.seed).to(teacher.device).train()
    critic = build_critic(config["out_channels"], section.seed).to(teacher.device) if section.adversarial else None
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if critic is not None:
        groups.append({"params": list(critic.parameters()), "betas": CRITIC_BETAS})
    training = Training(
        recipe=recipe,
        section=section,
        folder=folder,
        teacher=teacher,
        cache=cache,
        pairs=PairMaker(teacher, cache, section),
        network=network,
        critic=critic,
        model=network if critic is None else NetworkAndCritic(network, critic),
        optimizer=torch.optim.AdamW(groups, lr=section.learning_rate, weight_decay=0.0, fused=True),
        ema=EMAModel(network.parameters(), decay=section.ema_decay, foreach=True),
    )
    facts = DecoderFacts(
        steps=0,
        vae=vae_digest(teacher.folder / VAE),
        parameters={part: _count(getattr(network, part)) for part in ("decoder", "encoder")},
        machine=describe(),
    )
    state = training.load_checkpoint(log)
    write_json(folder / "recipe.json", recipe.resolved())
    _manifest(training, sources, replace(facts, steps=state.step)).write(folder)
    _train(training, state, progress)
    _write_result(training, sources, replace(facts, steps=state.step, finished=True))
    return folder / VAE


def _check_recipe(folder: Path, section: Decoder) -> None:
    """Raises RcdeployError that lists the differences, when `folder` holds a decoder of other settings."""
    # validated, so that a decoder of an earlier version has the keys that are new since
    before = Decoder(**Manifest.read(folder, "decoder").recipe.get("decoder") or {}).model_dump(mode="json")
    differences = [
        f"decoder.{key}: {before.get(key)} -> {value}"
        for key, value in section.model_dump(mode="json").items()
        if key not in CHANGEABLE and before.get(key) != value
    ]
    if differences:
        raise RcdeployError(
            f"{folder} holds a decoder of other settings",
            fix="Take another folder, or remove that one to start over.",
            errors=differences,
        )


def _check_crop(section: Decoder, teacher: LatentDiffusionModel, resolution: int | None) -> None:
    side = min(teacher.latent_shape(resolution)[1:])
    if section.crop is not None and section.crop > side:
        raise RcdeployError(
            f"decoder.crop = {section.crop}, and the cached latents are {side} on a side",
            fix="Give a smaller crop, or leave it out for the whole.",
        )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _manifest(training: Training, sources: dict[str, str], facts: DecoderFacts) -> Manifest:
    return Manifest(
        kind="decoder",
        recipe=training.recipe.resolved(),
        teacher=training.teacher.identity,
        noise_schedule=training.cache.manifest.noise_schedule,
        latents=training.cache.manifest.latents,
        made_from=[{"kind": "latent_cache", "sha256": sources["latent_cache"]}],
        facts=vars(facts),
    )


def _train(training: Training, state: TrainState, progress: Progress) -> None:
    section, network = training.section, training.network
    learning_rate = learning_rate_schedule(section)
    metrics_file = MetricsFile(training.folder, state.step)
    timer = StepTimer(state.step)
    with stop_signals(True) as signals:
        while state.step < section.max_steps:
            for group in training.optimizer.param_groups:
                group["lr"] = learning_rate(state.step)
            latents, images = training.pairs.make(state.step)
            critic = training.critic if state.step >= section.critic_from else None
            loss, losses = decoder_loss(network, training.teacher, latents, images, section, critic)
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), section.max_grad_norm)
            training.optimizer.step()
            training.optimizer.zero_grad()
            training.ema.step(network.parameters())
            state.add({**losses, "grad_norm": grad_norm})
            state.step += 1
            is_last_step = state.step == section.max_steps
            if state.step % section.log_every == 0 or is_last_step:
                metrics = state.close_window(state.reduced_sums(lambda sums: sums), "decoder")
                timing = {"lr": learning_rate(state.step - 1), "seconds_per_step": timer.lap(state.step)}
                metrics_file.add({"step": state.step, **metrics, **timing})
                state.metrics = {**metrics, **timing}
            progress("decoder", state.step, section.max_steps, state.metrics)
            if state.step % section.checkpoint_every == 0 or is_last_step or signals:
                training.save_checkpoint(state)
            if signals:
                raise Stopped(f"stopped after step {state.step:,}; the same command continues from there")


@torch.no_grad()
def _write_result(training: Training, sources: dict[str, str], facts: DecoderFacts) -> None:
    """Writes vae/ with the EMA weights, samples.png (the VAE above, the tiny decoder below) and the manifest."""
    network = training.network
    training.ema.copy_to(network.parameters())
    network.eval()
    rows = training.pairs.validation_rows or range(len(training.cache))
    latents, images = training.pairs.pairs([(row, False) for row in rows])
    decoded = torch.cat([network.decoder(batch) for batch in latents.split(training.section.batch_size)]).clamp(-1, 1)
    if training.pairs.validation_rows:
        mean_square = torch.nn.functional.mse_loss(decoded, images).item()
        psnr = 10 * torch.log10(torch.tensor(4 / max(mean_square, 1e-12))).item()  # images range over 2
        validation = {"pixel": pixel_loss(decoded, images).item(), "psnr": psnr}
        facts = replace(facts, validation={name: float(f"{value:.4g}") for name, value in validation.items()})
    with new_folder(training.folder / VAE) as beside:
        network.save_pretrained(beside)
    pictures: list[tuple[str, Any]] = [
        (label, (x[:SAMPLES].cpu() / 2 + 0.5).numpy()) for label, x in (("VAE", images), ("tiny", decoded))
    ]
    plots.grid(pictures, training.cache.prompts.take(list(rows[:SAMPLES])), training.folder / "samples.png")
    manifest = _manifest(training, sources, facts)
    manifest.add_files(training.folder, VAE)
    manifest.write(training.folder)
