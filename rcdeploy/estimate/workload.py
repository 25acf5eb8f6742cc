"""How much work a recipe is, by counting: prompts, calls of each network, bytes on disk. No network is built here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import NAME, Manifest

from ..bench.costs import branches
from ..conditioning import recipe_probability
from ..model_config import is_hub_name, latent_shape, read_supported_unet_config
from ..prompts.patterns import WholeWordPatterns, passing
from ..prompts.readers import batches, files_of
from ..random_streams import SHUFFLE, generator
from ..recipe import WORDNET, Recipe
from ..student.sd14 import SD14_CONFIGS

DISTINCT = 2_000_000
"""captions up to which duplicates are looked for; beyond, their number is an upper bound"""
PROMPT_BYTES = 60
"""of a caption, where a file of them is not there"""
WORDNET_NOUNS, WORDNET_PROMPT_BYTES = 25_992, 67
"""of WordNet 3.0, as prompts.recipe_pool takes them; bytes: mean of 128 prompts of each"""
SD14_COPIED = 4 * (123_060_480 + 83_653_863)
"""bytes of SD-1.4's text encoder and VAE in fp32, as they are published"""
PICTURES = 8
"""pictures of a grid whose recipe names no prompts"""


@dataclass(frozen=True)
class Shapes:
    """A teacher without its weights: configs of unet, text_encoder and vae; bytes on disk of the latter two."""

    configs: dict[str, dict[str, Any]]
    num_train_timesteps: int
    copied_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of a prompt."""
        return int(self.configs["text_encoder"].get("max_position_embeddings", 77))

    def latent(self, resolution: int | None) -> tuple[int, int, int]:
        """[c, h, w], as Teacher.latent_shape."""
        return latent_shape(self.configs["unet"], self.configs["vae"], resolution)


def teacher_shapes(path: str) -> Shapes:
    """Nothing is fetched: of teachers that are not on this machine only SD-1.x is known. Raises RcdeployError."""
    if is_hub_name(path):
        if "stable-diffusion-v1" not in path:
            raise RcdeployError(
                f"the shapes of {path} are not known: it is not on this machine",
                fix="Fetch it first (hf download) and set teacher.path to its folder.",
            )
        return Shapes(
            dict(SD14_CONFIGS), 1000, SD14_COPIED, (f"{path} is not on this machine: its shapes are built in.",)
        )
    folder = Path(path)
    configs = {"unet": read_supported_unet_config(folder)}
    configs |= {name: read_json(folder / name / "config.json") for name in ("text_encoder", "vae")}
    steps = int(read_json(folder / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000))
    weights = sum(f.stat().st_size for name in ("text_encoder", "vae") for f in (folder / name).glob("*.safetensors"))
    return Shapes(configs, steps, weights)


@dataclass(frozen=True)
class Prompts:
    """paired and pool: (captions, their bytes in UTF-8). notes: what could not be known exactly."""

    paired: tuple[int, int]
    pool: tuple[int, int]
    notes: tuple[str, ...] = ()


def count_prompts(recipe: Recipe) -> Prompts:
    """Reads the captions. Where files are not there: prompts.paired_count, and no others than the paired ones.

    What a recipe has made from WordNet is counted without making it.
    """
    wanted, notes, cache = recipe.prompts, [], recipe.cache
    if WORDNET in (*wanted.paired, *wanted.pool):
        return _with_made_ones(recipe)
    here = all(Path(p).exists() for p in wanted.paired)
    if here:
        texts, total = _distinct(wanted.paired, wanted.column, wanted.paired_exclude)
        count = min(wanted.paired_count or total, total)
        chosen = generator(cache.seed, SHUFFLE).permutation(len(texts))[:count]
        paired = (count, sum(len(texts[i].encode()) for i in chosen) * count // max(1, len(chosen)))
    elif wanted.paired_count:
        paired = (wanted.paired_count, wanted.paired_count * PROMPT_BYTES)
        notes.append(
            f"The files of prompts.paired are not here: paired_count of {PROMPT_BYTES} bytes each are assumed."
        )
    else:
        missing = next(p for p in wanted.paired if not Path(p).exists())
        raise RcdeployError(
            f"prompts.paired: {missing} is not there, and without it nobody knows how many prompts it has",
            fix="Put it there, or say how many it will have: --set prompts.paired_count=212000",
        )
    if len(wanted.pool) == 1 and (Path(wanted.pool[0]) / NAME).is_file():
        facts = Manifest.read(Path(wanted.pool[0]), "prompt_pool").facts
        return Prompts(paired, (int(facts["count"]), int(facts["bytes"])), tuple(notes))
    missing_pool = [p for p in wanted.pool if not Path(p).exists()]
    notes += [f"prompts.pool: {p} is not here; its prompts are not in the pool's bytes." for p in missing_pool]
    sources = list(dict.fromkeys(p for p in [*wanted.pool, *wanted.paired] if Path(p).exists()))
    texts, total = _distinct(sources, wanted.column, [] if wanted.pool else wanted.paired_exclude)
    size = sum(len(t.encode()) for t in texts) * total // max(1, len(texts))
    if total > DISTINCT:
        notes.append(f"Beyond {DISTINCT:,} captions duplicates were not looked for.")
    return Prompts(paired, (total, size) if sources else paired, tuple(notes))


def _with_made_ones(recipe: Recipe) -> Prompts:
    wanted, made = recipe.prompts, recipe.prompts.per_noun * WORDNET_NOUNS
    files = {key: [p for p in getattr(wanted, key) if p != WORDNET] for key in ("paired", "pool")}
    others = count_prompts(recipe.model_copy(update={"prompts": wanted.model_copy(update=files)}))
    paired_made = min(wanted.paired_count or made, made) if WORDNET in wanted.paired else 0
    pool_made = made if WORDNET in wanted.pool else paired_made
    paired = min(others.paired[0] + paired_made, wanted.paired_count or others.paired[0] + paired_made)
    note = f"Prompts from WordNet: about {WORDNET_NOUNS:,} nouns, of {WORDNET_PROMPT_BYTES} bytes each."
    return Prompts(
        (paired, others.paired[1] + WORDNET_PROMPT_BYTES * (paired - others.paired[0])),
        (others.pool[0] + pool_made, others.pool[1] + WORDNET_PROMPT_BYTES * pool_made),
        (*others.notes, note),
    )


def _distinct(sources: list[str], column: str | None, exclude: list[str]) -> tuple[list[str], int]:
    """Captions as a pool keeps them, the first DISTINCT of them, and how many there are."""
    included, excluded = WholeWordPatterns([]), WholeWordPatterns(exclude)
    kept, more = dict[str, None](), 0
    for rows in batches([file for p in sources for file in files_of(Path(p))], column):
        texts = [text for row in rows if (text := " ".join(row.split()))]
        passed = passing(texts, included, excluded)
        if len(kept) < DISTINCT:
            kept.update(dict.fromkeys(passed))
        else:
            more += len(passed)
    return list(kept), len(kept) + more


@dataclass(frozen=True)
class Stage:
    """rows: unit of work (units.make_units) -> rows of it in all. disk: bytes it leaves. shared: by all processes."""

    name: str
    amount: str
    rows: Mapping[str, float]
    disk: int
    shared: bool = True


def stages(
    recipe: Recipe, shapes: Shapes, prompts: Prompts, *, in_half: bool, parameters: dict[str, int]
) -> list[Stage]:
    """What `rcdeploy distill` does, in its order. parameters: of the student, and of it with its projectors (trained).

    in_half: embeddings of prompts are in fp16 or bf16. Disk: tensors and prompts; manifests add a few kilobytes.
    """
    return [
        _cache(recipe, shapes, prompts),
        Stage("prompt pool", f"{prompts.pool[0]:,} prompts", {}, prompts.pool[1] + 8 * (prompts.pool[0] + 1)),
        _training(recipe, shapes, prompts, in_half, parameters),
        _pictures(recipe, prompts.paired[0]),
        Stage("pipeline", "student in fp16, text encoder, VAE", {}, 2 * parameters["student"] + shapes.copied_bytes),
    ]


def _cache(recipe: Recipe, shapes: Shapes, prompts: Prompts) -> Stage:
    cache, (count, size), shape = recipe.cache, prompts.paired, shapes.latent(recipe.cache.resolution)
    whole, rest = divmod(count, cache.shard_size)
    shards = [cache.shard_size] * whole + [rest] * bool(rest)
    tensors = sum(shard_bytes(n, shape) for n in set(shards[:1])) * whole if whole else 0
    tensors += shard_bytes(rest, shape) if rest else 0
    disk = tensors + (size + count) + size + 8 * (count + 1)  # shards, prompts.txt, prompts/
    if cache.source == "real":
        return Stage("latent cache", f"{count:,} pictures encoded", {"encode": count}, disk)
    rows = count * cache.num_inference_steps * branches(cache.guidance_scale)
    amount = f"{count:,} latents, {rows:,} rows of the teacher"
    return Stage("latent cache", amount, {"teacher": rows, "text": count + 1}, disk)


def shard_bytes(rows: int, shape: tuple[int, int, int]) -> int:
    """A safetensors file of fp16 latents [rows, c, h, w]: 8 bytes, a head in JSON (a multiple of 8 long), the data."""
    data = 2 * rows * int(np.prod(shape))
    entry = {"dtype": "F16", "shape": [rows, *shape], "data_offsets": [0, data]}
    head = len(json.dumps({"latents": entry}, separators=(",", ":")))
    return 8 + head + -head % 8 + data


def text_cache_bytes(recipe: Recipe, shapes: Shapes, prompts: Prompts, in_half: bool) -> int:
    """Memory for embeddings of the paired prompts; 0 if train.text_cache_gb is too little: each step makes its own."""
    width = int(shapes.configs["text_encoder"]["hidden_size"]) * (2 if in_half else 4)
    size = prompts.paired[0] * shapes.length * width
    return size if size <= recipe.train.text_cache_gb * 1e9 else 0


def unpaired_share(recipe: Recipe, num_train_timesteps: int) -> float:
    """Of all samples: those with a random text, which is encoded in the step. p(t) over all t, less the null ones."""
    c = recipe.conditioning
    p = recipe_probability(c)
    return float(p(np.arange(num_train_timesteps) / num_train_timesteps).mean()) * (1 - c.null_probability)


def _training(recipe: Recipe, shapes: Shapes, prompts: Prompts, in_half: bool, parameters: dict[str, int]) -> Stage:
    train, null = recipe.train, recipe.conditioning.null_probability
    samples, share = train.max_steps * train.global_batch_size, unpaired_share(recipe, shapes.num_train_timesteps)
    if text_cache_bytes(recipe, shapes, prompts, in_half):
        texts = prompts.paired[0] + share * samples
    else:
        texts = (1 - null) * samples
    saved = -(-train.max_steps // train.checkpoint_every)
    kept = min(saved, train.keep_checkpoints + (1 if recipe.evaluate.every else 0))  # the last ones, and the best
    disk = kept * 4 * (3 * parameters["trained"] + parameters["student"])  # weights, two moments, EMA
    amount = f"{train.max_steps:,} steps of {train.global_batch_size:,}"
    return Stage("training", amount, {"step": samples, "update": train.max_steps, "text": texts}, disk)


def _pictures(recipe: Recipe, paired: int) -> Stage:
    """Validation losses, grids (the teacher draws its own once), and the pictures that are scored, if any are."""
    evaluate = recipe.evaluate
    looks = -(-recipe.train.max_steps // evaluate.every) if evaluate.every else 0
    rows_each = evaluate.num_inference_steps * branches(evaluate.guidance_scale)
    pictures = (len(evaluate.prompts) or PICTURES) * (looks + bool(looks))
    drawn = (len(evaluate.prompts) or PICTURES) * rows_each
    validated = evaluate.validation_size * looks
    asked = min(evaluate.count or paired, paired) if evaluate.score != "validation" else 0
    scored = asked * looks
    rows = {
        "teacher": drawn * bool(looks) + validated,
        "student": drawn * looks + validated + scored * rows_each,
        "decode": pictures + scored,
        "text": pictures + validated + scored,
    }
    amount = f"{looks:,} grids and validation losses" + (f", {scored:,} scored pictures" if scored else "")
    return Stage("pictures", amount if looks else "none", rows, 0, shared=False)
