"""Fills a latent cache: the teacher samples x_0 latents of the paired prompts, or its VAE encodes real images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdeploy_runtime.digests import DigestCache
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder, replacing, sha256, write_json
from rcdeploy_runtime.manifest import NAME, Manifest

from .condition import Condition
from .diffusion_model import LatentDiffusionModel
from .latent_cache import CacheFolder, LatentCache, LatentCacheFacts
from .progress import Log, Progress, no_log, no_progress
from .prompts.filters import PoolOptions
from .prompts.pool import PromptPool, open_whole
from .prompts.pool_builder import build_pool
from .prompts.readers import files_of
from .prompts.recipe_pool import paired_sources
from .random_streams import SHUFFLE, generator
from .real_images import captioned_images, encode_images
from .recipe import Cache, Recipe, digest
from .sampling import sample_latents, starting_noise
from .storage.claims import Claim, make_once
from .storage.shards import claim_missing_shards
from .storage.tensors import is_whole, save_tensors


def identity(recipe: Recipe, teacher: LatentDiffusionModel, sources: Sequence[Path]) -> dict[str, Any]:
    """Everything that a cache's latents depend on; its folder is named after the digest of this.

    sources: files of the paired prompts.
    """
    cache = recipe.cache.model_dump(mode="json", exclude={"folder", "batch_size"})
    prompts = recipe.prompts.model_dump(include={"column", "paired_count", "paired_exclude"})
    return {
        "teacher": teacher.revision,
        "cache": cache,
        "prompts": {**prompts, "paired": [[file.name, sha256(file)] for s in sources for file in files_of(s)]},
        "schedule": teacher.noise_schedule,
    }


def prepare(
    recipe: Recipe,
    teacher: LatentDiffusionModel,
    sources: Sequence[Path],
    log: Log = no_log,
    digests: DigestCache | None = None,
) -> CacheFolder:
    """Writes the folder with its prompts and manifest unless it exists; checks that it belongs to this recipe.

    Args:
        recipe: whose cache it is.
        teacher: of the recipe.
        sources: files of the paired prompts (recipe_pool.paired_sources).
        log: receives whom this process waits for, and what was damaged.
        digests: that are known of the folder's files, instead of the remembered ones.

    Raises:
        RcdeployError: the cache has another teacher, resolution or set of prompts.
    """
    expected = identity(recipe, teacher, sources)
    default = Path("caches") / f"{Path(teacher.name).name}-{digest(expected)[:8]}"
    folder = Path(recipe.cache.folder or default)
    if not (folder / NAME).is_file():
        # unusable weights should show before anything is written
        teacher.load("text_encoder", "unet" if recipe.cache.source == "teacher" else "vae")
    make_once(
        lambda: _write_prompts_and_manifest(recipe, teacher, folder, sources, expected),
        folder / NAME,
        Claim(folder / "prepare"),
        (folder, *folder.parents),
        log,
    )
    cache = CacheFolder.read(folder, digests)
    _check_identity(cache, expected, teacher)
    _mend_prompts(cache, log)
    return cache


def _write_prompts_and_manifest(
    recipe: Recipe, teacher: LatentDiffusionModel, folder: Path, sources: Sequence[Path], expected: dict[str, Any]
) -> None:
    cache = recipe.cache
    all_prompts = folder / ".all_prompts"  # a name of ours: nobody keeps anything in it
    # a process that was killed while it removed it left half a pool, which build_pool does not replace
    shutil.rmtree(all_prompts, ignore_errors=True)
    candidates = build_pool(
        sources,
        all_prompts,
        PoolOptions(column=recipe.prompts.column, exclude=tuple(recipe.prompts.paired_exclude)),
    )
    images: list[str] = []
    prompts: PromptPool | list[str] = candidates
    if cache.source == "real":
        # an image is used if its caption is among the paired prompts, so that filters hold for images too
        allowed = set(candidates)
        pairs = [pair for pair in captioned_images(Path(str(cache.images))) if pair[1] in allowed]
        images = [str(file) for file, _ in pairs]
        prompts = [caption for _, caption in pairs]
        if not images:
            raise RcdeployError(f"no image of {cache.images} has a caption that is among the paired prompts")
    count = min(recipe.prompts.paired_count or len(prompts), len(prompts))
    order = generator(cache.seed, SHUFFLE).permutation(len(prompts))[:count].tolist()
    chosen = [prompts[i] for i in order] if images else candidates.take(order)
    with replacing(folder / "prompts.txt") as beside:
        beside.write_text("".join(f"{prompt}\n" for prompt in chosen), encoding="utf-8")
    stored = build_pool([folder / "prompts.txt"], folder / "prompts", PoolOptions(deduplicate=False))
    candidates.close()
    shutil.rmtree(all_prompts)
    Manifest(
        kind="latent_cache",
        recipe=recipe.resolved(),
        teacher=teacher.identity,
        noise_schedule=teacher.noise_schedule,
        latents={"shape": list(teacher.latent_shape(cache.resolution)), "scaling_factor": teacher.scaling_factor},
        facts=vars(
            LatentCacheFacts(
                identity=expected,
                count=count,
                shard_size=cache.shard_size,
                batch_size=cache.batch_size,
                images=[images[i] for i in order] if images else [],
                prompts=stored.digest,
            )
        ),
    ).write(folder)


def _mend_prompts(cache: CacheFolder, log: Log) -> None:
    """Builds damaged prompts again from prompts.txt. Raises RcdeployError when that has changed too."""
    folder, expected = cache.folder / "prompts", cache.prompts_digest
    problem = _damage(cache, folder)
    if problem is None:
        return
    log(f"{problem}; it is built again")
    beside = cache.folder / f".prompts.{os.getpid()}.again"
    try:
        with build_pool([cache.folder / "prompts.txt"], beside, PoolOptions(deduplicate=False)) as pool:
            whole = len(pool) == cache.facts.count and expected in (None, pool.digest)
        if not whole:
            raise RcdeployError(
                f"{folder} and {cache.folder / 'prompts.txt'} have both changed since they were written",
                fix=f"Bring one back from a copy, or remove {cache.folder}: the same command makes it anew.",
            )
        with new_folder(folder) as empty:
            shutil.copytree(beside, empty, dirs_exist_ok=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _damage(cache: CacheFolder, folder: Path) -> str | None:
    """Why the prompts in `folder` are not those of the cache; None when they are."""
    try:
        with open_whole(folder, cache.digests) as pool:
            if len(pool) == cache.facts.count and cache.prompts_digest in (None, pool.digest):
                return None
        return f"{folder} holds other prompts than those that the cache was begun with"
    except RcdeployError as error:
        return error.message


def _check_identity(cache: CacheFolder, expected: dict[str, Any], teacher: LatentDiffusionModel) -> None:
    actual = cache.facts.identity
    fix = "Leave cache.folder out and the fitting cache gets a folder of its own, or name another one."
    if actual["teacher"] != expected["teacher"]:
        raise RcdeployError(
            f"the latent cache {cache.folder} was made with the teacher {cache.manifest.teacher['id']} "
            f"({actual['teacher']}), not {teacher.name} ({expected['teacher']})",
            fix=fix,
        )
    if actual == expected:
        return
    errors = [
        f"{section}.{key}: the cache was made with {actual[section].get(key)}, the recipe asks for {value}"
        for section in ("cache", "prompts")
        for key, value in expected[section].items()
        if actual[section].get(key) != value
    ]
    errors = errors or ["the noise schedule of the teacher has changed"]
    raise RcdeployError(f"the latent cache {cache.folder} was made with other settings", fix=fix, errors=errors)


def fill(
    cache: CacheFolder,
    settings: Cache,
    teacher: LatentDiffusionModel,
    progress: Progress = no_progress,
    log: Log = no_log,
) -> LatentCache:
    """Makes the missing shards, sharing the work with whoever else fills the same folder, and opens the cache.

    Under `accelerate launch` each process begins at another shard. Raises RcdeployError for NaN latents, a full disk.
    """
    missing = cache.missing()
    for file in (cache.shard_files[i] for i in missing):
        if is_whole(file):
            log(f"{file} has changed since it was written and is made again")
    if missing:
        log(f"the teacher makes {cache.describe_missing(missing)}, in {cache.folder}")
    prompts = PromptPool.open(cache.folder / "prompts")
    null = teacher.null_condition(teacher.latent_shape(settings.resolution)[1:])
    rank = int(os.environ.get("RANK", 0))
    made_any = False
    for shard, _claim in claim_missing_shards(cache.shard_files, whole=cache.is_whole, offset=rank, log=log):
        pending = set(cache.missing())
        completed = sum(len(rows) for i, rows in enumerate(cache.shard_rows) if i not in pending)
        batches = []
        for batch in _batches(cache.shard_rows[shard], cache.facts.batch_size):
            batches.append(_batch_latents(cache, settings, teacher, prompts.take(list(batch)), null, batch))
            completed += len(batch)
            progress("latent cache", completed, cache.facts.count)
        save_tensors(cache.shard_files[shard], {"latents": torch.cat(batches)}, digest=True)
        made_any = True
    if made_any or not cache.manifest.files or cache.manifest.wrong_files(cache.folder, contents=False):
        _write_digests(cache)
    return LatentCache.open_filled(cache)


def make_latent_cache(
    recipe: Recipe, teacher: LatentDiffusionModel, progress: Progress = no_progress, log: Log = no_log
) -> LatentCache:
    """`prepare` and `fill`."""
    return fill(prepare(recipe, teacher, paired_sources(recipe, log), log), recipe.cache, teacher, progress, log)


def _batches(rows: range, batch_size: int) -> list[range]:
    """batch_size is the manifest's, whatever the recipe says now: kernels round by the shape of a batch, and no byte
    may depend on who continued the cache.
    """
    return [range(start, min(start + batch_size, rows.stop)) for start in range(rows.start, rows.stop, batch_size)]


def _batch_latents(
    cache: CacheFolder,
    settings: Cache,
    teacher: LatentDiffusionModel,
    prompts: list[str],
    null: Condition,
    rows: range,
) -> Tensor:
    """Scaled latents [n, c, h, w] of these rows, fp16, on the CPU."""
    shape = teacher.latent_shape(settings.resolution)
    if settings.source == "real":
        latents = encode_images(teacher, [Path(cache.facts.images[i]) for i in rows], shape)
    else:
        latents = sample_latents(
            teacher.unet,
            teacher.schedule,
            starting_noise(settings.seed, rows, shape),
            teacher.encode_prompts(prompts, shape[1:]),
            null,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
    if not latents.isfinite().all():
        raise RcdeployError(f"the teacher made NaN of {prompts[0]!r} or one of the next {len(rows) - 1} prompts")
    return latents.half().cpu()


def _write_digests(cache: CacheFolder) -> None:
    """Writes index.json, and every shard's digest into the manifest. Several processes may: they write the same."""
    names = [file.name for file in cache.shard_files]
    cache.manifest.files = {}
    for name in [*names, "prompts/prompts.bin", "prompts/offsets.bin"]:
        cache.manifest.add_file(cache.folder, name)
    index = {name: [rows.start, rows.stop] for name, rows in zip(names, cache.shard_rows, strict=True)}
    write_json(cache.folder / "index.json", index)
    cache.manifest.write(cache.folder)
