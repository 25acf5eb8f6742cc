"""Which prompts an evaluation draws, and into which halves their scores are split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from ..prompts.patterns import WholeWordPatterns, passing
from ..prompts.readers import batches, files_of
from ..random_streams import EVALUATION, generator

ANIMALS = "animals"


def choose_prompts(
    sources: Sequence[Path],
    *,
    column: str | None = None,
    count: int = 0,
    at_most: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    repeat: int = 1,
) -> list[str]:
    """Captions of the files, white space evened out; repeated ones stay.

    include, exclude: patterns (whole words, case ignored) of which one must match, none may. count: so many of what is
    left, drawn by `seed`, because files may be sorted by what they show; 0: all. repeat: each of them so many times in
    a row. Raises RcdeployError when none is left, or fewer than `count`; with `at_most` fewer will do.
    """
    included, excluded = WholeWordPatterns(include), WholeWordPatterns(exclude)
    found = []
    for rows in batches([file for source in sources for file in files_of(source)], column):
        prompts = [prompt for row in rows if (prompt := " ".join(row.split()))]
        found += passing(prompts, included, excluded)
    named = ", ".join(map(str, sources))
    if not found:
        why = ": no caption passes --include and --exclude" if include or exclude else ""
        raise RcdeployError(f"there is nothing to draw in {named}{why}", fix="Name another file with --prompts.")
    if count > len(found) and not at_most:
        raise RcdeployError(
            f"{count:,} prompts were asked for, but {named} has {len(found):,} to draw",
            fix=f"Give --count {len(found)} or less, or 0 for all of them.",
        )
    if 0 < count < len(found):
        # in the order drawn: the first ones, which people look at, show a bit of everything
        found = [found[i] for i in generator(seed, EVALUATION).permutation(len(found))[:count].tolist()]
    return [prompt for prompt in found for _ in range(repeat)]


def halves(prompts: Sequence[str], words: str) -> list[bool]:
    """Which prompts belong to the half "with". words: "animals" (Table 2), or a file with a word or expression a line.

    Raises RcdeployError for a file that cannot be used, and when all prompts would be in one half.
    """
    found = _with_animals(prompts) if words == ANIMALS else _matching(prompts, Path(words))
    if all(found) or not any(found):
        raise RcdeployError(
            f"--split {words} splits nothing: {'every' if all(found) else 'no'} prompt has one of its words",
            fix="Leave --split out, or take other prompts.",
        )
    return found


def _with_animals(prompts: Sequence[str]) -> list[bool]:
    """By the list that keeps animals away from a student's paired prompts, plurals included."""
    from ..prompts.animals import FILE
    from ..prompts.keywords import Keywords

    animals = Keywords.read(FILE)
    return [animals.find(prompt) is not None for prompt in prompts]


def _matching(prompts: Sequence[str], file: Path) -> list[bool]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RcdeployError(
            f"--split {file} cannot be read: {error}", fix="It is a text file with a word or an expression a line."
        ) from None
    expressions = [line for line in lines if line and not line.startswith("#")]
    if not expressions:
        raise RcdeployError(f"--split {file} holds no word", fix="Write one word or regular expression a line.")
    return WholeWordPatterns(expressions).matches(prompts)
