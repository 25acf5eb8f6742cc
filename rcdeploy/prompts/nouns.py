"""Nouns that an image can show, out of WordNet (the paper's sec. A).

The paper takes "nouns with a hierarchical depth of 14" and asks a language model which of them are visual: about 17K.
Depth is counted here on the longest way up, as NLTK's max_depth: it takes "poodle" (14) and leaves out "toy poodle"
(15); on the shortest way hardly any noun would be too deep. Without a language model WordNet's lexicographer files
stand in for it: they know that justice is no thing, not whether an image of a thing would be clear.

WordNet 3.0's nouns come with rcdeploy, in nouns.txt.gz beside this file: its licence, the digests of the files that the
list was made from, and a line a noun (word, lexicographer file, depth). `python -m rcdeploy.prompts.nouns` makes it
from an installed WordNet.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing, sha256

from ..progress import Progress, no_progress
from .journal import Journal, ask
from .language_model import LanguageModel, Request
from .readers import check_regular_file
from .wordnet import FILES, WordNet

FILE = Path(__file__).with_suffix(".txt.gz")
MAX_DEPTH = 14
VISUAL_KINDS = ("animal", "artifact", "body", "food", "object", "person", "plant", "substance")
"""the lexicographer files of what can be seen"""
_WORD = re.compile(r"[a-z][a-z' -]+").fullmatch  # in lower case: the others are names
_OBJECTIONABLE = re.compile(
    r"offensive|slur|disparag|derogat|obscen|vulgar|contempt|\brude\b|genital|sexual|prostitut|excre(?:ment|t)|\bcorpse\b"
).search


@dataclass(frozen=True)
class Noun:
    """kind: the lexicographer file of its most frequent meaning; empty where it is not known."""

    word: str
    kind: str = ""


def nouns_with_depth(wordnet: WordNet) -> list[tuple[Noun, int]]:
    """A noun for each thing, by name, with its steps from WordNet's root: kinds of things, not names of single ones.

    A word stands for its most frequent meaning, as a text encoder would take it, and a thing is called by the first of
    its words. What its gloss calls offensive, or speaks of sex or excrement, is left out.
    """
    nouns = []
    for word, (offset, *_) in sorted(wordnet.senses.items()):
        synset = wordnet.synsets[offset]
        if synset.words[0] == word and _WORD(word) and not synset.is_instance and not _OBJECTIONABLE(synset.gloss):
            nouns.append((Noun(word, synset.kind), wordnet.depth(offset)))
    return nouns


@cache
def _read_shipped(file: Path) -> tuple[tuple[str, ...], tuple[tuple[Noun, int], ...]]:
    """nouns.txt.gz -> (lines of its head, nouns with their depth)."""
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    head = tuple(line for line in lines if line.startswith("#"))
    fields = (line.split("\t") for line in lines[len(head) :])
    return head, tuple((Noun(word, kind), int(depth)) for word, kind, depth in fields)


def shipped_digests() -> list[str]:
    """sha256 of the WordNet files that the shipped nouns were made from, in the order of wordnet.FILES."""
    return [line.split()[-1] for line in _read_shipped(FILE)[0] if line.startswith("# sha256 of ")]


def wordnet_nouns(max_depth: int = MAX_DEPTH, wordnet: WordNet | None = None) -> list[Noun]:
    """Nouns at most `max_depth` steps from WordNet's root, by name; of the shipped list unless a WordNet is given."""
    nouns = _read_shipped(FILE)[1] if wordnet is None else nouns_with_depth(wordnet)
    return [noun for noun, depth in nouns if depth <= max_depth]


def write_shipped(wordnet: WordNet, file: Path = FILE) -> None:
    """Writes nouns.txt.gz: equal bytes for equal WordNet files."""
    head = ["# Nouns, made from WordNet by `python -m rcdeploy.prompts.nouns`. WordNet's licence:", "#"]
    head += [*wordnet.licence(), "#", *(f"# sha256 of {name}: {sha256(wordnet.folder / name)}" for name in FILES)]
    lines = [f"{noun.word}\t{noun.kind}\t{depth}" for noun, depth in nouns_with_depth(wordnet)]
    with replacing(file) as beside:
        beside.write_bytes(gzip.compress("\n".join([*head, *lines, ""]).encode(), 9, mtime=0))


def visual_by_kind(nouns: Sequence[Noun]) -> list[Noun]:
    """Nouns in WordNet's lexicographer files of what can be seen: a stand-in for the language model."""
    return [noun for noun in nouns if noun.kind in VISUAL_KINDS]


def visual_requests(nouns: Sequence[Noun]) -> list[Request]:
    """The paper's question, one a noun."""
    question = (
        "Can a text-to-image model clearly visualize '{0}'? It must be a noun. Answer 'yes' or 'no' and give a brief "
        "explanation.\n\nInput: '{0}'"
    )
    return [Request("You are a helpful assistant.", question.format(noun.word), max_tokens=80) for noun in nouns]


def visual_by_model(
    nouns: Sequence[Noun], model: LanguageModel, journal: Journal, progress: Progress = no_progress
) -> tuple[list[Noun], int]:
    """The nouns that the model answers yes for, and how many it gave no usable answer for (which are left out)."""
    requests = visual_requests(nouns)
    failed = ask(
        model,
        requests,
        journal,
        lambda _, answer: yes_or_no(answer) is not None,
        stage="which nouns are visual",
        progress=progress,
    )
    keys = [request.key(model.name) for request in requests]
    visual = [n for n, key in zip(nouns, keys, strict=True) if key in journal and yes_or_no(journal[key])]
    return visual, failed


def yes_or_no(answer: str) -> bool | None:
    """The first word of an answer, whatever its markup (**Yes**, 'no'.); None when it is neither."""
    word = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return word[1].lower() == "yes" if word else None


def read_nouns(file: Path) -> list[Noun]:
    """A noun or phrase a line, for prompts of a domain of one's own. Raises RcdeployError when there is none."""
    check_regular_file(file)
    try:
        words = [" ".join(line.split()) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RcdeployError(f"the nouns {file} cannot be read: {error}") from None
    nouns = [Noun(word) for word in dict.fromkeys(words) if word and not word.startswith("#")]
    if not nouns:
        raise RcdeployError(f"{file} holds no noun", fix="Write one a line.")
    return nouns


if __name__ == "__main__":
    write_shipped(WordNet.open())
