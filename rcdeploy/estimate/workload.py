"""Counts the work of a recipe: prompts, samples through each network, bytes on disk. No network is built here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import NAME, Manifest

from ..model_config import is_hub_name, latent_shape, model_components, read_supported_unet_config
from ..prompts.patterns import WholeWordPatterns, passing
from ..prompts.pool import PoolFacts
from ..prompts.readers import batches, files_of
from ..random_streams import SHUFFLE, generator
from ..recipe import WORDNET, Recipe
from ..student.built_in import SD14, SD21, SD21_BASE, SDXL, TEACHERS, built_in_teacher

MAX_DEDUPLICATED = 2_000_000
"""captions among which duplicates are removed; beyond, their number is an upper bound"""
ASSUMED_PROMPT_BYTES = 60
"""of a caption, where a file of them is missing"""
WORDNET_NOUNS = 25_992
"""of WordNet 3.0, as prompts.recipe_pool takes them"""
WORDNET_PROMPT_BYTES = 67
"""mean of 128 prompts of each noun"""
COPIED_BYTES = {
    SD14: 4 * (123_060_480 + 83_653_863),
    SD21_BASE: 4 * (340_387_840 + 83_653_863),
    SD21: 4 * (340_387_840 + 83_653_863),
    SDXL: 4 * (123_060_480 + 694_659_840 + 83_653_863),
}
"""of text encoders and VAE in fp32, as they are published"""
DEFAULT_GRID_SIZE = 8
"""images of a grid whose recipe names no prompts"""


def grid_size(recipe: Recipe) -> int:
    """Images of a grid of samples."""
    return len(recipe.evaluate.prompts) or DEFAULT_GRID_SIZE


@dataclass(frozen=True)
class Shapes:
    """A teacher without its weights.

    configs: of unet, text_encoder (text_encoder_2) and vae. copied_bytes: size on disk of what a pipeline copies, text
    encoders and VAE. notes: what is assumed.
    """

    configs: dict[str, dict[str, Any]]
    num_train_timesteps: int
    copied_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of a prompt."""
        return int(self.configs["text_encoder"].get("max_position_embeddings", 77))

    def latent(self, resolution: int | None) -> tuple[int, int, int]:
        """[c, h, w], as LatentDiffusionModel.latent_shape."""
        return latent_shape(self.configs["unet"], self.configs["vae"], resolution)


def teacher_shapes(path: str) -> Shapes:
    """Reads the configs of a teacher; of those on the hub SD-1.x, 2.x and XL are known, because nothing is downloaded.

    Raises RcdeployError for another name on the hub, and for a folder that is not a supported model.
    """
    if is_hub_name(path):
        known = built_in_teacher(path)
        if known is None:
            raise RcdeployError(
                f"the shapes of {path} are not known: it is not on this machine",
                fix="Download it first (hf download) and set teacher.path to its folder.",
            )
        note = f"{path} is not on this machine: the shapes of {known} are used."
        return Shapes(dict(TEACHERS[known]), 1000, COPIED_BYTES[known], (note,))
    folder = Path(path)
    configs = {"unet": read_supported_unet_config(folder)}
    copied = [name for name in model_components(configs["unet"]) if name == "vae" or name.startswith("text_encoder")]
    configs |= {name: read_json(folder / name / "config.json") for name in copied}
    steps = int(read_json(folder / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000))
    weights = sum(f.stat().st_size for name in copied for f in (folder / name).glob("*.safetensors"))
    return Shapes(configs, steps, weights)


@dataclass(frozen=True)
class PromptCount:
    """Captions and their bytes in UTF-8."""

    count: int
    size: int


@dataclass(frozen=True)
class PromptCounts:
    """Of the paired prompts and of the pool. notes: what could not be counted exactly."""

    paired: PromptCount
    pool: PromptCount
    notes: tuple[str, ...] = ()


def count_prompts(recipe: Recipe) -> PromptCounts:
    """Reads the captions and counts them, without building anything; prompts from WordNet are counted by formula.

    Where the paired files are missing, prompts.paired_count is taken. Raises RcdeployError without either.
    """
    section = recipe.prompts
    if WORDNET in (*section.paired, *section.pool):
        return _count_with_wordnet(recipe)
    paired, notes = _count_paired(recipe)
    if len(section.pool) == 1 and (Path(section.pool[0]) / NAME).is_file():
        facts = Manifest.read(Path(section.pool[0]), "prompt_pool").facts_as(PoolFacts)
        return PromptCounts(paired, PromptCount(facts.count, facts.bytes), tuple(notes))
    missing = [p for p in section.pool if not Path(p).exists()]
    notes += [f"prompts.pool: {p} is missing; its prompts are not in the pool's bytes." for p in missing]
    sources = list(dict.fromkeys(p for p in [*section.pool, *section.paired] if Path(p).exists()))
    captions, total = _distinct_captions(sources, section.column, [] if section.pool else section.paired_exclude)
    size = sum(len(caption.encode()) for caption in captions) * total // max(1, len(captions))
    if total > MAX_DEDUPLICATED:
        notes.append(f"Duplicates beyond the first {MAX_DEDUPLICATED:,} captions are not removed from the count.")
    return PromptCounts(paired, PromptCount(total, size) if sources else paired, tuple(notes))


def _count_paired(recipe: Recipe) -> tuple[PromptCount, list[str]]:
    """The paired prompts, and notes on what is assumed."""
    section = recipe.prompts
    missing = [p for p in section.paired if not Path(p).exists()]
    if not missing:
        captions, total = _distinct_captions(section.paired, section.column, section.paired_exclude)
        count = min(section.paired_count or total, total)
        chosen = generator(recipe.cache.seed, SHUFFLE).permutation(len(captions))[:count]
        size = sum(len(captions[i].encode()) for i in chosen) * count // max(1, len(chosen))
        return PromptCount(count, size), []
    if not section.paired_count:
        raise RcdeployError(
            f"prompts.paired: {missing[0]} does not exist, so its prompts cannot be counted",
            fix="Put the file there, or give the number of prompts: --set prompts.paired_count=212000",
        )
    note = f"The files of prompts.paired are missing: paired_count of {ASSUMED_PROMPT_BYTES} bytes each are assumed."
    return PromptCount(section.paired_count, section.paired_count * ASSUMED_PROMPT_BYTES), [note]


def _count_with_wordnet(recipe: Recipe) -> PromptCounts:
    section = recipe.prompts
    generated = section.per_noun * WORDNET_NOUNS
    files = {key: [p for p in getattr(section, key) if p != WORDNET] for key in ("paired", "pool")}
    from_files = count_prompts(recipe.model_copy(update={"prompts": section.model_copy(update=files)}))
    generated_paired = min(section.paired_count or generated, generated) if WORDNET in section.paired else 0
    generated_pool = generated if WORDNET in section.pool else generated_paired
    all_paired = from_files.paired.count + generated_paired
    paired = min(all_paired, section.paired_count or all_paired)
    paired_size = from_files.paired.size + WORDNET_PROMPT_BYTES * (paired - from_files.paired.count)
    pool_size = from_files.pool.size + WORDNET_PROMPT_BYTES * generated_pool
    note = f"Prompts from WordNet: about {WORDNET_NOUNS:,} nouns, of {WORDNET_PROMPT_BYTES} bytes each."
    return PromptCounts(
        PromptCount(paired, paired_size),
        PromptCount(from_files.pool.count + generated_pool, pool_size),
        (*from_files.notes, note),
    )


def _distinct_captions(sources: list[str], column: str | None, exclude: list[str]) -> tuple[list[str], int]:
    """-> the first MAX_DEDUPLICATED captions of a pool that is built from these sources, and how many it has in all."""
    included = WholeWordPatterns([])
    excluded = WholeWordPatterns(exclude)
    captions = dict[str, None]()
    further = 0
    for rows in batches([file for p in sources for file in files_of(Path(p))], column):
        texts = [text for row in rows if (text := " ".join(row.split()))]
        passed = passing(texts, included, excluded)
        if len(captions) < MAX_DEDUPLICATED:
            captions.update(dict.fromkeys(passed))
        else:
            further += len(passed)
    return list(captions), len(captions) + further
