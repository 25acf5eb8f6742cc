"""The prompts of an evaluation, and the split of them into two parts that are scored apart. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from ..prompts.patterns import WholeWordPatterns, passing
from ..prompts.readers import batches, files_of
from ..random_streams import EVALUATION, generator
from .spec import EvaluationSpec

ANIMALS = "animals"


def choose_prompts(spec: EvaluationSpec) -> list[str]:
    """Captions of the spec's files that pass include and exclude, `count` of them sampled by its seed.

    White space is normalised, duplicates stay; each prompt comes `repeat` times in a row. They are sampled because
    files may be sorted by their contents. Raises RcdeployError when no caption is left, or fewer than `count` without
    fewer_is_fine.
    """
    include = WholeWordPatterns(spec.include)
    exclude = WholeWordPatterns(spec.exclude)
    prompts: list[str] = []
    for rows in batches([file for source in spec.prompt_files for file in files_of(source)], spec.column):
        captions = [caption for row in rows if (caption := " ".join(row.split()))]
        prompts += passing(captions, include, exclude)
    files = ", ".join(map(str, spec.prompt_files))
    if not prompts:
        why = ": no caption passes --include and --exclude" if spec.include or spec.exclude else ""
        raise RcdeployError(f"there are no prompts in {files}{why}", fix="Name another file with --prompts.")
    if spec.count > len(prompts) and not spec.fewer_is_fine:
        raise RcdeployError(
            f"{spec.count:,} prompts are requested, but {files} has {len(prompts):,}",
            fix=f"Give --count {len(prompts)} or less, or 0 for all of them.",
        )
    if 0 < spec.count < len(prompts):
        # in the sampled order: the first ones, which the grid shows, are a bit of everything
        order = generator(spec.seed, EVALUATION).permutation(len(prompts))[: spec.count]
        prompts = [prompts[i] for i in order.tolist()]
    return [prompt for prompt in prompts for _ in range(spec.repeat)]


def matching_prompts(prompts: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[bool]:
    """For each prompt: one of the `include` expressions matches (or there are none), and none of `exclude` does."""
    included = WholeWordPatterns(include).matches(prompts) if include else [True] * len(prompts)
    excluded = WholeWordPatterns(exclude).matches(prompts)
    return [a and not b for a, b in zip(included, excluded, strict=True)]


def split_prompts(prompts: Sequence[str], words: str) -> list[bool]:
    """For each prompt: it has one of the words, and belongs to the part "with".

    words: "animals" (Table 2), or a text file with a word or regular expression per line. Raises RcdeployError for a
    file that cannot be used, and when all prompts would be in one part.
    """
    split = _with_animals(prompts) if words == ANIMALS else _with_words_of(Path(words), prompts)
    if all(split) or not any(split):
        raise RcdeployError(
            f"--split {words} splits nothing: {'every' if all(split) else 'no'} prompt has one of its words",
            fix="Leave --split out, or take other prompts.",
        )
    return split


def _with_animals(prompts: Sequence[str]) -> list[bool]:
    """By the list that keeps animals out of a student's paired prompts, plurals included."""
    from ..prompts.animals import FILE
    from ..prompts.keywords import Keywords

    animals = Keywords.read(FILE)
    return [animals.find(prompt) is not None for prompt in prompts]


def _with_words_of(file: Path, prompts: Sequence[str]) -> list[bool]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RcdeployError(
            f"--split {file} cannot be read: {error}", fix="It is a text file with a word or an expression per line."
        ) from None
    expressions = [line for line in lines if line and not line.startswith("#")]
    if not expressions:
        raise RcdeployError(f"--split {file} holds no word", fix="Write one word or regular expression per line.")
    return WholeWordPatterns(expressions).matches(prompts)
