"""Prompts without captions (the paper's sec. A): a number for each noun, and a balanced subset that gets latents."""

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

from ..progress import Progress, no_progress
from ..random_streams import generator
from .journal import Journal, ask
from .language_model import LanguageModel, Request
from .nouns import Noun
from .templates import templates

MAX_ROUNDS = 3
"""requests to a language model until a noun's prompts are complete"""
TOKENS_PER_PROMPT = 25
"""expected length of a language model's prompts, with their numbers"""
NOUNS = 100
"""stream of random numbers (see random_streams) of the balanced subset and of a choice of nouns"""

PromptsOf = Callable[[Noun], list[str]]


def prompt_request(noun: Noun, count: int, repeat: int) -> Request:
    """The paper's request for `count` prompts about a noun."""
    user = (
        f"Generate {count} visually rich prompts focused on the noun '{noun.word}', ensuring each prompt is strictly "
        "distinct and cannot overlap in style, setting, or composition. Please return only the prompts on separate "
        f"lines with numbering.\n\nInput: '{noun.word}'"
    )
    return Request("You are a helpful assistant.", user, max_tokens=64 + 2 * TOKENS_PER_PROMPT * count, temperature=1.0,
                   repeat=repeat)  # fmt: skip


def numbered_lines(answer: str) -> list[str]:
    """The distinct prompts of an answer: its lines that begin with a number, without it and without quotes."""
    # without blank lines: \W* runs over them, from each of them, which takes forever in an answer of nothing else
    text = "\n".join(line for line in map(str.strip, answer.split("\n")) if re.search(r"\w", line))
    lines = re.findall(r"^\W*\d+\s*[.):\-]\W*?\s*(\S.*)$", text, re.MULTILINE)
    return list(dict.fromkeys(prompt for line in lines if (prompt := " ".join(line.split()).strip(" \"'“”*"))))


@dataclass
class ModelPrompts:
    """Prompts that a language model wrote, from its journal. Called with a noun: its prompts, `count` at the most."""

    model: LanguageModel
    journal: Journal
    count: int

    def __call__(self, noun: Noun) -> list[str]:
        prompts, _ = self._journalled(noun)
        return prompts[: self.count]

    def _journalled(self, noun: Noun) -> tuple[list[str], Request | None]:
        """(prompts of the answered rounds, the request for what is missing; None when nothing is)."""
        prompts: list[str] = []
        for repeat in range(MAX_ROUNDS):
            if len(prompts) >= self.count:
                return prompts, None
            request = prompt_request(noun, self.count - len(prompts), repeat)
            if (key := request.key(self.model.name)) not in self.journal:
                return prompts, request
            prompts = list(dict.fromkeys([*prompts, *numbered_lines(self.journal[key])]))
        return prompts, None

    def missing(self, nouns: Iterable[Noun]) -> list[Request]:
        """The next request of every noun that lacks prompts."""
        return [request for noun in nouns if (request := self._journalled(noun)[1])]

    def request_missing(self, nouns: Sequence[Noun], progress: Progress = no_progress) -> int:
        """Requests what is missing, in up to MAX_ROUNDS. Returns the number of requests without a usable answer."""
        failed = 0
        for _ in range(MAX_ROUNDS):
            if not (requests := self.missing(nouns)):
                break
            failed = ask(
                self.model,
                requests,
                self.journal,
                lambda _, answer: bool(numbered_lines(answer)),
                stage="prompts",
                progress=progress,
            )
        return failed


def from_templates(count: int, seed: int = 0) -> PromptsOf:
    """`count` prompts for each noun, made of phrases (see templates)."""
    return lambda noun: templates(noun, count, seed)


def quotas(sizes: Sequence[int], total: int, rng: np.random.Generator) -> list[int]:
    """Splits `total` over groups of these sizes (or all they have, if that is less) as evenly as possible.

    No two shares differ by more than 1, except where a group has no more; the odd ones go to random groups.
    """
    available = np.asarray(sizes, np.int64)
    shares = np.zeros(len(sizes), np.int64)
    remaining = min(total, int(available.sum()))
    while remaining:
        open_groups = np.flatnonzero(shares < available)
        if remaining < len(open_groups):
            shares[rng.permutation(open_groups)[:remaining]] += 1
            break
        # as far as the smallest open group goes, or as the remainder allows for each
        step = min(int((available - shares)[open_groups].min()), remaining // len(open_groups))
        shares[open_groups] += step
        remaining -= step * len(open_groups)
    return [int(n) for n in shares]


def balanced(
    nouns: Sequence[Noun], prompts_of: PromptsOf, counts: Sequence[int], total: int, seed: int
) -> Iterator[str]:
    """Samples `total` prompts, spread over the nouns as evenly as possible.

    Args:
        nouns: the nouns in order.
        prompts_of: the prompts of a noun.
        counts: their number, for each noun.
        total: prompts to sample.
        seed: of the sample.
    """
    shares = quotas(counts, total, generator(seed, NOUNS))
    for i, (noun, share) in enumerate(zip(nouns, shares, strict=True)):
        if share:
            prompts = prompts_of(noun)
            rows = generator(seed, NOUNS, 1, i).permutation(len(prompts))[:share]
            yield from (prompts[row] for row in sorted(rows.tolist()))


def sample_nouns(nouns: list[Noun], count: int, seed: int) -> list[Noun]:
    """`count` random ones of the nouns, in order; all, if there are no more."""
    if count >= len(nouns):
        return nouns
    rows = sorted(generator(seed, NOUNS, 2).permutation(len(nouns))[:count].tolist())
    return [nouns[row] for row in rows]


def write_lines(file: Path, lines: Iterable[str]) -> int:
    """Writes one a line, compressed if the name ends in .gz: equal bytes for equal lines. Returns their number."""
    count = 0
    with replacing(file) as beside, beside.open("wb") as raw:
        out: IO[bytes] = gzip.GzipFile("", "wb", 3, raw, mtime=0) if file.suffix == ".gz" else raw  # type: ignore[assignment]
        with out:
            for line in lines:
                out.write(line.encode() + b"\n")
                count += 1
    return count


def write_prompts(
    folder: Path,
    nouns: Sequence[Noun],
    prompts_of: PromptsOf,
    paired: int | None,
    seed: int,
    provenance: dict[str, object],
) -> dict[str, int]:
    """Writes nouns.txt, pool.txt.gz (every prompt), paired.txt.gz (a balanced subset) and made.json.

    Args:
        folder: where to.
        nouns: the nouns in order.
        prompts_of: the prompts of a noun.
        paired: size of the balanced subset; none is written without it.
        seed: of the balanced subset.
        provenance: how the prompts were made, for made.json.

    Returns:
        The number of lines of each file.

    Raises:
        RcdeployError: there is no noun or no prompt.
    """
    if not nouns:
        raise RcdeployError("no noun is left", fix="Check --nouns, --depth and the language model's answers.")
    counts = {"nouns": write_lines(folder / "nouns.txt", (noun.word for noun in nouns))}
    per_noun: list[int] = []

    def all_prompts() -> Iterator[str]:
        for noun in nouns:
            prompts = prompts_of(noun)
            per_noun.append(len(prompts))
            yield from prompts

    counts["prompts"] = write_lines(folder / "pool.txt.gz", all_prompts())
    if not counts["prompts"]:
        raise RcdeployError(
            "no prompt was made", fix="Check the journal: the language model's answers have no numbered lines."
        )
    if paired is not None:
        counts["paired"] = write_lines(folder / "paired.txt.gz", balanced(nouns, prompts_of, per_noun, paired, seed))
    write_json(folder / "made.json", {"counts": counts, "seed": seed, **provenance})
    return counts
