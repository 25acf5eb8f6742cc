"""The stages of `rcdeploy build`: samples through each network, and the bytes that each leaves on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..bench.costs import branches
from ..condition import added_shapes
from ..conditioning import recipe_probability
from ..recipe import Recipe
from ..recipe_stages import Decoder
from ..storage.tensors import BLANK, DIGEST
from .workload import PromptCounts, Shapes, grid_size


@dataclass(frozen=True)
class Stage:
    """samples: processed in all by each unit of work (work_units.make_units). shared: among all processes."""

    name: str
    amount: str
    samples: Mapping[str, float]
    disk_bytes: int
    shared: bool = True


def make_stages(
    recipe: Recipe, shapes: Shapes, prompts: PromptCounts, *, in_half: bool, parameters: dict[str, int]
) -> list[Stage]:
    """The stages in the order in which `rcdeploy build` runs them.

    Args:
        in_half: embeddings of prompts are in fp16 or bf16.
        parameters: of the "student", and with its projectors ("trained").

    On disk are tensors and prompts; manifests add a few kilobytes.
    """
    pool = prompts.pool
    return [
        _cache(recipe, shapes, prompts),
        Stage("prompt pool", f"{pool.count:,} prompts", {}, pool.size + 8 * (pool.count + 1)),
        _training(recipe, shapes, prompts, in_half, parameters),
        _samples(recipe, prompts.paired.count),
        Stage("pipeline", "student in fp16, text encoder, VAE", {}, 2 * parameters["student"] + shapes.copied_bytes),
        *([_few_steps(recipe, shapes, prompts, in_half, parameters)] if recipe.few_steps else []),
        *([_decoder(recipe.decoder, prompts.paired.count, parameters)] if recipe.decoder else []),
    ]


def _cache(recipe: Recipe, shapes: Shapes, prompts: PromptCounts) -> Stage:
    cache = recipe.cache
    count = prompts.paired.count
    shape = shapes.latent(cache.resolution)
    full_shards, remainder = divmod(count, cache.shard_size)
    shards = full_shards * shard_bytes(cache.shard_size, shape)
    shards += shard_bytes(remainder, shape) if remainder else 0
    prompts_txt = prompts.paired.size + count
    pool = prompts.paired.size + 8 * (count + 1)
    disk_bytes = shards + prompts_txt + pool
    if cache.source == "real":
        return Stage("latent cache", f"{count:,} images encoded", {"encode": count}, disk_bytes)
    samples = count * cache.num_inference_steps * branches(cache.guidance_scale)
    amount = f"{count:,} latents, {samples:,} samples through the teacher"
    return Stage("latent cache", amount, {"teacher": samples, "text": count + 1}, disk_bytes)


def shard_bytes(count: int, shape: tuple[int, int, int]) -> int:
    """Size of a safetensors file of fp16 latents [count, c, h, w].

    8 bytes, a header in JSON with the file's own digest (padded to a multiple of 8), the data.
    """
    data = 2 * count * math.prod(shape)
    entry = {"dtype": "F16", "shape": [count, *shape], "data_offsets": [0, data]}
    metadata = {DIGEST: BLANK}
    header = len(json.dumps({"__metadata__": metadata, "latents": entry}, separators=(",", ":")))
    return 8 + header + -header % 8 + data


def text_cache_bytes(recipe: Recipe, shapes: Shapes, prompts: PromptCounts, in_half: bool) -> int:
    """Memory for embeddings of the paired prompts; 0 if they exceed train.text_cache_gb: steps encode them."""
    unet = shapes.configs["unet"]
    added = sum(math.prod(shape) for shape in added_shapes(unet, 1).values())
    numbers = shapes.tokens * int(unet["cross_attention_dim"]) + added
    size = prompts.paired.count * numbers * (2 if in_half else 4)
    return size if size <= recipe.train.text_cache_gb * 1e9 else 0


def unpaired_share(recipe: Recipe, num_train_timesteps: int) -> float:
    """Share of all samples that get a random prompt, which each step encodes: the mean of p(t), less the null ones."""
    conditioning = recipe.conditioning
    p = recipe_probability(conditioning)
    mean = float(p(np.arange(num_train_timesteps) / num_train_timesteps).mean())
    return mean * (1 - conditioning.null_probability)


def _training(
    recipe: Recipe, shapes: Shapes, prompts: PromptCounts, in_half: bool, parameters: dict[str, int]
) -> Stage:
    train = recipe.train
    samples = train.max_steps * train.global_batch_size
    texts = _texts(recipe, shapes, prompts, in_half, samples)
    checkpoints = _checkpoints(recipe, train.max_steps)
    disk_bytes = checkpoints * 4 * (3 * parameters["trained"] + parameters["student"])  # weights, two moments; EMA
    amount = f"{train.max_steps:,} steps of {train.global_batch_size:,}"
    return Stage("training", amount, {"step": samples, "update": train.max_steps, "text": texts}, disk_bytes)


def _texts(recipe: Recipe, shapes: Shapes, prompts: PromptCounts, in_half: bool, samples: int) -> float:
    """Prompts that a training of so many samples encodes."""
    if text_cache_bytes(recipe, shapes, prompts, in_half):
        return prompts.paired.count + unpaired_share(recipe, shapes.num_train_timesteps) * samples
    return (1 - recipe.conditioning.null_probability) * samples


def _checkpoints(recipe: Recipe, max_steps: int) -> int:
    """That stay on disk."""
    written = math.ceil(max_steps / recipe.train.checkpoint_every)
    return min(written, recipe.train.keep_checkpoints + (1 if recipe.evaluate.every else 0))


def _few_steps(
    recipe: Recipe, shapes: Shapes, prompts: PromptCounts, in_half: bool, parameters: dict[str, int]
) -> Stage:
    """A sample: the solver's steps (two teacher calls each under guidance), the student's own way to its start (with
    consistency from it), and one call with a gradient. Its grids and validation losses are not counted."""
    section = recipe.few_steps
    assert section is not None
    samples = section.max_steps * recipe.train.global_batch_size
    folded = recipe.distill.guidance_scale is not None
    solver_steps = section.solver_steps
    own_calls = section.own_states * (section.num_inference_steps - 1) / 2
    if section.method == "consistency":
        own_calls = (solver_steps - 1) / solver_steps
        solver_steps = 1
    solver_calls = solver_steps * (2 if folded else branches(recipe.evaluate.guidance_scale))
    teacher_calls = 0
    if section.solver == "teacher":
        teacher_calls = solver_calls
    else:
        own_calls += solver_steps if folded else solver_calls
    work = {
        "teacher": samples * teacher_calls,
        "student": samples * own_calls,
        "leap": samples,
        "update": section.max_steps,
        "text": _texts(recipe, shapes, prompts, in_half, samples),
    }
    checkpoints = _checkpoints(recipe, section.max_steps) * 4 * 4 * parameters["student"]
    pipeline = 2 * parameters["student"] + shapes.copied_bytes
    amount = f"{section.max_steps:,} steps of {recipe.train.global_batch_size:,}"
    return Stage("few steps", amount, work, checkpoints + pipeline)


def _decoder(section: Decoder, latents: int, parameters: dict[str, int]) -> Stage:
    """Targets that memory holds are decoded once: each latent as cached, and once with noise (on a GPU or not, by one
    process)."""
    samples = section.max_steps * section.batch_size
    amount = f"{section.max_steps:,} steps of {section.batch_size:,}"
    work = {"decode": min(samples, 2 * latents), "decoder": samples}
    checkpoints = min(2, math.ceil(section.max_steps / section.checkpoint_every)) * 4 * 4 * parameters["decoder"]
    return Stage("decoder", amount, work, checkpoints + 4 * parameters["decoder"], shared=False)


def _samples(recipe: Recipe, paired_count: int) -> Stage:
    """Validation losses, sample grids (the teacher makes its own once), and the images that are scored, if any.

    The stage's name is part of the format of --json.
    """
    section = recipe.evaluate
    evaluations = math.ceil(recipe.train.max_steps / section.every) if section.every else 0
    if not evaluations:
        return Stage("pictures", "none", dict.fromkeys(("teacher", "student", "decode", "text"), 0), 0, shared=False)
    sampling = recipe.student_sampling
    unet_samples_per_image = sampling.unet_calls * branches(
        sampling.guidance_scale, recipe.distill.takes_guidance_scale
    )
    teacher_samples_per_grid = grid_size(recipe) * section.num_inference_steps * branches(section.guidance_scale)
    unet_samples_per_grid = grid_size(recipe) * unet_samples_per_image
    grid_images = grid_size(recipe) * (evaluations + 1)
    validated = section.validation_size * evaluations
    scored = 0
    if section.score != "validation":
        scored = min(section.count or paired_count, paired_count) * evaluations
    samples = {
        "teacher": teacher_samples_per_grid + validated * recipe.distill.teacher_calls,
        "student": unet_samples_per_grid * evaluations + validated + scored * unet_samples_per_image,
        "decode": grid_images + scored,
        "text": grid_images + validated + scored,
    }
    amount = f"{evaluations:,} grids and validation losses" + (f", {scored:,} scored images" if scored else "")
    return Stage("pictures", amount, samples, 0, shared=False)
