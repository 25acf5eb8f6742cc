"""Prompts from nothing (the paper's sec. A): so many for each noun, and a balanced subset that gets latents."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing, write_json

from ..random_streams import generator
from .journal import Journal, Progress, ask
from .language_model import LanguageModel, Request
from .nouns import Noun
from .templates import templates

PER_NOUN = 128
ROUNDS = 3
"""so often a language model is asked for what is missing of a noun's prompts"""
TOKENS_A_PROMPT = 25
"""expected of a language model's prompts, with their numbers"""
BALANCE = 100
"""the stream of random numbers that the balanced subset is drawn with: beyond those of conditioning"""

PromptsOf = Callable[[Noun], list[str]]


def prompt_request(noun: Noun, count: int, repeat: int) -> Request:
    """The paper's request for `count` prompts about a noun."""
    user = (
        f"Generate {count} visually rich prompts focused on the noun '{noun.word}', ensuring each prompt is strictly "
        "distinct and cannot overlap in style, setting, or composition. Please return only the prompts on separate "
        f"lines with numbering.\n\nInput: '{noun.word}'"
    )
    return Request("You are a helpful assistant.", user, max_tokens=64 + 2 * TOKENS_A_PROMPT * count, temperature=1.0,
                   repeat=repeat)  # fmt: skip


def numbered_lines(answer: str) -> list[str]:
    """The different prompts of an answer: its lines that begin with a number, without it and without quotes."""
    lines = re.findall(r"^\W*\d+\s*[.):\-]\W*?\s*(\S.*)$", answer, re.MULTILINE)
    return list(dict.fromkeys(prompt for line in lines if (prompt := " ".join(line.split()).strip(" \"'“”*"))))


@dataclass
class Asked:
    """Prompts that a language model wrote. Call it with a noun: its prompts, `count` at the most, from the journal."""

    model: LanguageModel
    journal: Journal
    count: int

    def __call__(self, noun: Noun) -> list[str]:
        found, request = self._so_far(noun)
        return found[: self.count]

    def _so_far(self, noun: Noun) -> tuple[list[str], Request | None]:
        """(prompts of the rounds that were answered, the request for what is missing; None when nothing is)."""
        found: list[str] = []
        for repeat in range(ROUNDS):
            if len(found) >= self.count:
                return found, None
            request = prompt_request(noun, self.count - len(found), repeat)
            if (key := request.key(self.model.name)) not in self.journal:
                return found, request
            found = list(dict.fromkeys([*found, *numbered_lines(self.journal[key])]))
        return found, None

    def missing(self, nouns: Iterable[Noun]) -> list[Request]:
        """The next request of every noun that lacks prompts."""
        return [request for noun in nouns if (request := self._so_far(noun)[1])]

    def ask(self, nouns: Sequence[Noun], progress: Progress | None = None) -> int:
        """Asks in ROUNDS, each for what is still missing. Returns the number of requests without a usable answer."""
        failed = 0
        for _ in range(ROUNDS):
            if not (requests := self.missing(nouns)):
                break
            failed = ask(self.model, requests, self.journal, lambda _, said: bool(numbered_lines(said)), progress)
        return failed


def from_templates(count: int, seed: int = 0) -> PromptsOf:
    return lambda noun: templates(noun, count, seed)


def quotas(counts: Sequence[int], total: int, rng: np.random.Generator) -> list[int]:
    """How many to take of each of len(counts) heaps, `total` in all (or all there are), as even as can be.

    No two differ by more than 1, but where a heap has no more; who gets the odd ones is drawn.
    """
    have, taken = np.asarray(counts, np.int64), np.zeros(len(counts), np.int64)
    left = min(total, int(have.sum()))
    while left:
        open_heaps = np.flatnonzero(taken < have)
        if left < len(open_heaps):
            taken[rng.permutation(open_heaps)[:left]] += 1
            break
        # as far as the smallest open heap goes, or as there is left for each
        step = min(int((have - taken)[open_heaps].min()), left // len(open_heaps))
        taken[open_heaps] += step
        left -= step * len(open_heaps)
    return [int(n) for n in taken]


def balanced(
    nouns: Sequence[Noun], prompts_of: PromptsOf, counts: Sequence[int], total: int, seed: int
) -> Iterator[str]:
    """`total` prompts, spread over the nouns as evenly as can be, each noun's drawn from its own (counts: how many)."""
    shares = quotas(counts, total, generator(seed, BALANCE))
    for i, (noun, share) in enumerate(zip(nouns, shares, strict=True)):
        if share:
            prompts = prompts_of(noun)
            rows = generator(seed, BALANCE, 1, i).permutation(len(prompts))[:share]
            yield from (prompts[row] for row in sorted(rows.tolist()))


def write_lines(file: Path, lines: Iterable[str]) -> int:
    """One a line, compressed if the name ends in .gz (the same lines, the same bytes); whole or not there."""
    count = 0
    with replacing(file) as beside, beside.open("wb") as raw:
        out: IO[bytes] = gzip.GzipFile("", "wb", 3, raw, mtime=0) if file.suffix == ".gz" else raw  # type: ignore[assignment]
        with out:
            for line in lines:
                out.write(line.encode() + b"\n")
                count += 1
    return count


def write_prompts(
    folder: Path, nouns: Sequence[Noun], prompts_of: PromptsOf, paired: int | None, seed: int, how: dict[str, object]
) -> dict[str, int]:
    """nouns.txt, pool.txt.gz (every prompt), paired.txt.gz (`paired` of them, balanced) and made.json. Returns counts.

    how: what made.json says of the way. Raises RcdeployError when there is no noun or no prompt.
    """
    if not nouns:
        raise RcdeployError("no noun is left", fix="Look at --nouns, --depth and what the language model said.")
    counts = {"nouns": write_lines(folder / "nouns.txt", (noun.word for noun in nouns))}
    of_noun: list[int] = []

    def prompts() -> Iterator[str]:
        for noun in nouns:
            made = prompts_of(noun)
            of_noun.append(len(made))
            yield from made

    counts["prompts"] = write_lines(folder / "pool.txt.gz", prompts())
    if not counts["prompts"]:
        raise RcdeployError(
            "no prompt was made", fix="Look at the journal: the language model's answers are malformed."
        )
    if paired is not None:
        counts["paired"] = write_lines(folder / "paired.txt.gz", balanced(nouns, prompts_of, of_noun, paired, seed))
    write_json(folder / "made.json", {"counts": counts, "seed": seed, **how})
    return counts
