"""The prompts of an evaluation, and the split of them into two parts that are scored apart. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress, groupby
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from ..prompts.patterns import WholeWordPatterns, passing
from ..prompts.readers import batches, files_of
from ..random_streams import EVALUATION, generator
from . import coco
from .spec import EvaluationSpec

ANIMALS = "animals"
COCO_ANIMALS = "coco-animals:"
"""before the file of COCO's annotations"""


def choose_and_split(spec: EvaluationSpec, split: str | None) -> tuple[list[str], list[bool] | None]:
    """The prompts of choose_prompts and, for each, whether it belongs to the part "with"; None without `split`.

    split: as in split_prompts, or "coco-animals:FILE" with COCO's instances_*.json; then prompts are captions of known
    images, and belong to "with" where an animal is annotated in theirs (paper, Table 2).

    Raises RcdeployError as choose_prompts and split_prompts do, and for captions without the ids of their images.
    """
    if split is None or not split.startswith(COCO_ANIMALS):
        prompts = choose_prompts(spec)
        return prompts, split_prompts(prompts, split) if split else None
    rows = [row for source in spec.prompt_files for row in coco.captioned_images(source, spec.column) if row.caption]
    passed = matching_prompts([row.caption for row in rows], spec.include, spec.exclude)
    rows = list(compress(rows, passed))
    chosen = [rows[i] for i in _sampled(spec, len(rows))]
    halves = coco.split_by_animals(Path(split.removeprefix(COCO_ANIMALS)), [row.image_id for row in chosen])
    _check_parts(split, halves, "an animal in its image")
    return [row.caption for row in chosen], halves


def choose_prompts(spec: EvaluationSpec) -> list[str]:
    """Captions of the spec's files that pass include and exclude, `count` of them sampled by its seed.

    White space is normalised, duplicates stay; each prompt comes `repeat` times in a row. They are sampled because
    files may be sorted by their contents. Of COCO's captions_*.json the first caption of each image is taken. Raises
    RcdeployError when no caption is left, or fewer than `count` without fewer_is_fine.
    """
    include = WholeWordPatterns(spec.include)
    exclude = WholeWordPatterns(spec.exclude)
    prompts: list[str] = []
    for rows in _batches(spec):
        captions = [caption for row in rows if (caption := " ".join(row.split()))]
        prompts += passing(captions, include, exclude)
    return [prompts[i] for i in _sampled(spec, len(prompts))]


def _batches(spec: EvaluationSpec) -> Iterator[list[str]]:
    """Rows of the spec's files, in order."""
    for is_coco, sources in groupby(spec.prompt_files, coco.is_coco_captions):
        if is_coco:
            yield [row.caption for source in sources for row in coco.captioned_images(source)]
        else:
            yield from batches([file for source in sources for file in files_of(source)], spec.column)


def _sampled(spec: EvaluationSpec, available: int) -> list[int]:
    """Which of `available` captions are scored, each `repeat` times. Raises RcdeployError as choose_prompts does."""
    files = ", ".join(map(str, spec.prompt_files))
    if not available:
        why = ": no caption passes --include and --exclude" if spec.include or spec.exclude else ""
        raise RcdeployError(f"there are no prompts in {files}{why}", fix="Name another file with --prompts.")
    if spec.count > available and not spec.fewer_is_fine:
        raise RcdeployError(
            f"{spec.count:,} prompts are requested, but {files} has {available:,}",
            fix=f"Give --count {available} or less, or 0 for all of them.",
        )
    chosen = list(range(available))
    if 0 < spec.count < available:
        # in the sampled order: the first ones, which the grid shows, are a bit of everything
        chosen = generator(spec.seed, EVALUATION).permutation(available)[: spec.count].tolist()
    return [i for i in chosen for _ in range(spec.repeat)]


def matching_prompts(prompts: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[bool]:
    """For each prompt: one of the `include` expressions matches (or there are none), and none of `exclude` does."""
    included = WholeWordPatterns(include).matches(prompts) if include else [True] * len(prompts)
    excluded = WholeWordPatterns(exclude).matches(prompts)
    return [a and not b for a, b in zip(included, excluded, strict=True)]


def split_prompts(prompts: Sequence[str], words: str) -> list[bool]:
    """For each prompt: it has one of the words, and belongs to the part "with".

    words: "animals" (by keywords), or a text file with a word or regular expression per line. Raises RcdeployError for
    a file that cannot be used, and when all prompts would be in one part.
    """
    split = _with_animals(prompts) if words == ANIMALS else _with_words_of(Path(words), prompts)
    _check_parts(words, split, "one of its words")
    return split


def _check_parts(split: str, halves: Sequence[bool], what: str) -> None:
    """Raises RcdeployError when all prompts are in one part."""
    if all(halves) or not any(halves):
        raise RcdeployError(
            f"--split {split} splits nothing: {'every' if all(halves) else 'no'} prompt has {what}",
            fix="Leave --split out, or take other prompts.",
        )


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
