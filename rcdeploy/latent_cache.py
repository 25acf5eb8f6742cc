"""The latent cache: x_0 latents of the paired prompts, sampled by the teacher and never decoded.

A folder of shards (safetensors, fp16, already multiplied by the scaling factor), the prompts they belong to, index.json
and manifest.json. A shard is there whole or not at all, so any number of processes or machines that see the folder may
fill it together, and a killed one goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing, sha256, write_json
from rcdeploy_runtime.manifest import NAME, Manifest

from .diffusion_model import LatentDiffusionModel
from .prompts.filters import PoolOptions
from .prompts.pool import PromptPool
from .prompts.pool_builder import build_pool
from .prompts.readers import files_of
from .prompts.recipe_pool import paired_sources
from .random_streams import SHUFFLE, generator
from .real_images import captioned_images, encode_images
from .recipe import Recipe, digest
from .sampling import sample_latents, starting_noise
from .storage.claims import Claim, make_once
from .storage.tensors import is_whole, save_tensors

Progress = Callable[[int, int], None]
"""latents done, latents in all"""


@dataclass(frozen=True)
class LatentCache:
    """An open cache. Latents are read from memory-mapped shards, row by row; they need no memory of their own."""

    folder: Path
    manifest: Manifest
    prompts: PromptPool
    shards: list[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.manifest.latents["shape"]
        return c, h, w

    def __len__(self) -> int:
        return int(self.manifest.facts["count"])

    def latents(self, rows: Sequence[int]) -> Tensor:
        """rows -> scaled x_0 [n, c, h, w], fp32."""
        size = self.manifest.facts["shard_size"]
        return torch.cat([self.shards[r // size][r % size : r % size + 1] for r in rows]).float()

    @classmethod
    def open(cls, folder: Path) -> LatentCache:
        """Raises RcdeployError when it is missing, unfinished, or a shard is truncated (the shard is named)."""
        manifest = Manifest.read(folder, "latent_cache")
        left = unfinished(folder, manifest)
        if left:
            raise RcdeployError(
                f"the latent cache {folder} lacks {len(left)} of {_shard_count(manifest)} shards: {_names(left)}",
                fix="`rcdeploy cache RECIPE` makes what is missing.",
            )
        names = [folder / _shard_name(i) for i in range(_shard_count(manifest))]
        shards = [safe_open(name, "pt").get_slice("latents") for name in names]
        return cls(folder, manifest, PromptPool.open(folder / "prompts"), shards)


def _shard_name(i: int) -> str:
    return f"latents-{i:05}.safetensors"


def _names(shards: list[int]) -> str:
    return ", ".join(_shard_name(i) for i in shards[:3]) + (", ..." if len(shards) > 3 else "")


def _shard_count(manifest: Manifest) -> int:
    return -(-int(manifest.facts["count"]) // int(manifest.facts["shard_size"]))


def _shard_rows(manifest: Manifest, shard: int) -> range:
    size = int(manifest.facts["shard_size"])
    return range(shard * size, min((shard + 1) * size, int(manifest.facts["count"])))


def unfinished(folder: Path, manifest: Manifest) -> list[int]:
    """Shards that are missing or truncated."""
    return [i for i in range(_shard_count(manifest)) if not is_whole(folder / _shard_name(i))]


def identity(recipe: Recipe, teacher: LatentDiffusionModel) -> dict[str, Any]:
    """What a cache's latents depend on; its folder is named after the digest of this."""
    cache = recipe.cache.model_dump(mode="json", exclude={"folder", "batch_size"})
    sources = [[f.name, sha256(f)] for p in paired_sources(recipe) for f in files_of(p)]
    prompts = recipe.prompts.model_dump(include={"column", "paired_count", "paired_exclude"})
    schedule = {k: v for k, v in teacher.schedule.config.items() if not k.startswith("_")}
    return {
        "teacher": teacher.revision,
        "cache": cache,
        "prompts": {**prompts, "paired": sources},
        "schedule": schedule,
    }


def folder_of(recipe: Recipe, teacher: LatentDiffusionModel) -> Path:
    if recipe.cache.folder:
        return Path(recipe.cache.folder)
    return Path("caches") / f"{Path(teacher.name).name}-{digest(identity(recipe, teacher))[:8]}"


def prepare(recipe: Recipe, teacher: LatentDiffusionModel) -> tuple[Path, Manifest]:
    """Makes the folder with its prompts and manifest, if it is not there; checks that it is this recipe's if it is.

    Raises RcdeployError for a cache of another teacher, resolution or set of prompts.
    """
    folder, wanted = folder_of(recipe, teacher), identity(recipe, teacher)
    if not (folder / NAME).is_file():
        # weights that cannot be used are found before anything is made
        _ = (teacher.text_encoder, teacher.unet if recipe.cache.source == "teacher" else teacher.vae)
    whole, made = folder / NAME, (folder, *folder.parents)
    make_once(lambda: _prepare(recipe, teacher, folder, wanted), whole, Claim(folder / "prepare"), made)
    manifest = Manifest.read(folder, "latent_cache")
    _refuse_another(folder, manifest, wanted, teacher)
    return folder, manifest


def _prepare(recipe: Recipe, teacher: LatentDiffusionModel, folder: Path, wanted: dict[str, Any]) -> None:
    cache, shape = recipe.cache, teacher.latent_shape(recipe.cache.resolution)
    teacher.load("text_encoder", "vae" if cache.source == "real" else "unet")
    paired = build_pool(
        paired_sources(recipe),
        folder / "all_prompts",
        PoolOptions(column=recipe.prompts.column, exclude=tuple(recipe.prompts.paired_exclude)),
    )
    prompts, images = [], []
    if cache.source == "real":
        # a picture is used if its caption is among the paired prompts, so that filters hold for pictures too
        allowed = set(paired)
        pairs = [pair for pair in captioned_images(Path(str(cache.images))) if pair[1] in allowed]
        images, prompts = [str(p[0]) for p in pairs], [p[1] for p in pairs]
        if not images:
            raise RcdeployError(f"no picture of {cache.images} has a caption that is among the paired prompts")
    total = len(images) if images else len(paired)
    count = min(recipe.prompts.paired_count or total, total)
    order = generator(cache.seed, SHUFFLE).permutation(total)[:count].tolist()
    prompts = [prompts[i] for i in order] if images else paired.take(order)
    with replacing(folder / "prompts.txt") as beside:
        beside.write_text("".join(f"{p}\n" for p in prompts), encoding="utf-8")
    build_pool([folder / "prompts.txt"], folder / "prompts", PoolOptions(deduplicate=False))
    paired.close()
    shutil.rmtree(folder / "all_prompts")
    Manifest(
        kind="latent_cache",
        recipe=recipe.resolved(),
        teacher=teacher.identity,
        noise_schedule={k: v for k, v in teacher.schedule.config.items() if not k.startswith("_")},
        latents={"shape": list(shape), "scaling_factor": teacher.scaling_factor},
        facts={
            "identity": wanted,
            "count": count,
            "shard_size": cache.shard_size,
            "batch_size": cache.batch_size,
            "images": [images[i] for i in order] if images else [],
        },
    ).write(folder)


def _refuse_another(folder: Path, manifest: Manifest, wanted: dict[str, Any], teacher: LatentDiffusionModel) -> None:
    have = manifest.facts["identity"]
    if have["teacher"] != wanted["teacher"]:
        what = f"the teacher {manifest.teacher['id']} ({have['teacher']}), not {teacher.name} ({wanted['teacher']})"
    elif have != wanted:
        keys = [(part, key) for part in ("cache", "prompts") for key in wanted[part]]
        differ = [
            f"{part}.{key}: {have[part].get(key)} there, {wanted[part][key]} here"
            for part, key in keys
            if have[part].get(key) != wanted[part][key]
        ]
        what = "other settings: " + "; ".join(differ or ["the noise schedule"])
    else:
        return
    raise RcdeployError(
        f"the latent cache {folder} was made with {what}",
        fix="Leave cache.folder out and a fitting cache gets its own folder, or name another one.",
    )


def fill(
    recipe: Recipe,
    teacher: LatentDiffusionModel,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> LatentCache:
    """Makes every shard that is missing, sharing the work with whoever else fills the same folder, and opens the cache.

    Under `accelerate launch` each process begins at another shard. Raises RcdeployError for NaN latents, a full disk.
    """
    folder, manifest = prepare(recipe, teacher)
    if left := unfinished(folder, manifest):
        tell(f"the teacher makes {len(left)} of {_shard_count(manifest)} shards of the cache {folder}: {_names(left)}")
    prompts = PromptPool.open(folder / "prompts")
    first, worked = int(os.environ.get("RANK", 0)), False
    while left := unfinished(folder, manifest):
        start = first % len(left)
        claims = {shard: Claim(folder / _shard_name(shard)) for shard in left[start:] + left[:start]}
        mine = next((shard for shard, claim in claims.items() if claim.take()), None)
        if mine is None:
            time.sleep(0.5)  # the others are at the last shards; should one die, its claim can be taken
            continue
        try:
            # between the look and the claim another process may have finished it
            if not is_whole(folder / _shard_name(mine)):
                whole = sum(len(_shard_rows(manifest, i)) for i in range(_shard_count(manifest)) if i not in left)
                latents = _shard_latents(recipe, teacher, manifest, prompts, mine, claims[mine], progress, whole)
                save_tensors(folder / _shard_name(mine), {"latents": latents})
                worked = True
        finally:
            claims[mine].release()
    if worked or not manifest.files:
        _finish(folder, manifest)
    return LatentCache.open(folder)


def _shard_latents(
    recipe: Recipe,
    teacher: LatentDiffusionModel,
    manifest: Manifest,
    prompts: PromptPool,
    shard: int,
    claim: Claim,
    progress: Progress | None,
    whole: int,
) -> Tensor:
    """[rows of the shard, c, h, w], fp16, scaled."""
    cache, rows, parts = recipe.cache, _shard_rows(manifest, shard), []
    images, shape = manifest.facts["images"], teacher.latent_shape(cache.resolution)
    null = teacher.encode_prompts([""])
    # the size the cache was begun with, whatever the recipe says now: kernels round by the shape of a batch, and no
    # byte may depend on who went on with the cache
    size = int(manifest.facts["batch_size"])
    for start in range(rows.start, rows.stop, size):
        batch = range(start, min(start + size, rows.stop))
        if cache.source == "real":
            latents = encode_images(teacher, [Path(images[i]) for i in batch], shape)
        else:
            latents = sample_latents(
                teacher.unet,
                teacher.schedule,
                starting_noise(cache.seed, batch, shape),
                teacher.encode_prompts(prompts.take(list(batch))),
                null,
                num_inference_steps=cache.num_inference_steps,
                guidance_scale=cache.guidance_scale,
            )
        if not latents.isfinite().all():
            raise RcdeployError(f"the teacher made NaN of {prompts[batch[0]]!r} or one of the next {len(batch) - 1}")
        parts.append(latents.half().cpu())
        claim.touch()
        if progress:
            progress(whole + batch.stop - rows.start, int(manifest.facts["count"]))
    return torch.cat(parts)


def _finish(folder: Path, manifest: Manifest) -> None:
    """Every shard's digest into the manifest; whoever comes last, or all at once: they write the same."""
    count, manifest.files = _shard_count(manifest), {}
    for name in [_shard_name(i) for i in range(count)] + ["prompts/prompts.bin", "prompts/offsets.bin"]:
        manifest.add_file(folder, name)
    rows = {_shard_name(i): [_shard_rows(manifest, i).start, _shard_rows(manifest, i).stop] for i in range(count)}
    write_json(folder / "index.json", rows)
    manifest.write(folder)
