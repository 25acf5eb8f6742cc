"""Nouns that a picture can show, out of WordNet (the paper's sec. A).

The paper takes "nouns with a hierarchical depth of 14" and asks a language model which of them are visual: about 17K.
Depth is counted here on the longest way up, as NLTK's max_depth: it takes "poodle" (14) and leaves out "toy poodle"
(15); on the shortest way hardly any noun would be too deep. Without a language model WordNet's lexicographer files
stand in for it: they know that justice is no thing, not whether a picture of a thing would be clear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from .journal import Journal, Progress, ask
from .language_model import LanguageModel, Request
from .wordnet import WordNet

DEPTH = 14
VISUAL = ("animal", "artifact", "body", "food", "object", "person", "plant", "substance")
"""the lexicographer files of what can be seen"""
_WORD = re.compile(r"[a-z][a-z' -]+").fullmatch  # in lower case: the others are names
_UNWANTED = re.compile(
    r"offensive|slur|disparag|derogat|obscen|vulgar|contempt|\brude\b|genital|sexual|prostitut|excre(?:ment|t)|\bcorpse\b"
).search


@dataclass(frozen=True)
class Noun:
    """kind: the lexicographer file of its most frequent meaning; empty where it is not known."""

    word: str
    kind: str = ""


def wordnet_nouns(wordnet: WordNet, depth: int = DEPTH) -> list[Noun]:
    """A noun for each thing, by name: kinds of things, not names of single ones, at most `depth` steps from the root.

    A word stands for its most frequent meaning, as a text encoder would take it, and a thing is called by the first of
    its words. What its gloss calls offensive, or speaks of sex or excrement, is left out.
    """
    found = []
    for word, (offset, *_) in sorted(wordnet.senses.items()):
        synset = wordnet.synsets[offset]
        if (
            synset.words[0] == word
            and _WORD(word)
            and not synset.is_instance
            and wordnet.depth(offset) <= depth
            and not _UNWANTED(synset.gloss)
        ):
            found.append(Noun(word, synset.kind))
    return found


def visual_by_kind(nouns: Sequence[Noun]) -> list[Noun]:
    """Those in WordNet's lexicographer files of what can be seen: a stand-in for the language model."""
    return [noun for noun in nouns if noun.kind in VISUAL]


def visual_requests(nouns: Sequence[Noun]) -> list[Request]:
    """The paper's question, one a noun."""
    question = (
        "Can a text-to-image model clearly visualize '{0}'? It must be a noun. Answer 'yes' or 'no' and give a brief "
        "explanation.\n\nInput: '{0}'"
    )
    return [Request("You are a helpful assistant.", question.format(noun.word), max_tokens=80) for noun in nouns]


def visual_by_model(
    nouns: Sequence[Noun], model: LanguageModel, journal: Journal, progress: Progress | None = None
) -> tuple[list[Noun], int]:
    """The nouns that the model says yes to, and how many it gave no usable answer for (which are left out)."""
    requests = visual_requests(nouns)
    failed = ask(model, requests, journal, lambda _, answer: yes_or_no(answer) is not None, progress)
    keys = [request.key(model.name) for request in requests]
    kept = [n for n, key in zip(nouns, keys, strict=True) if key in journal and yes_or_no(journal[key])]
    return kept, failed


def yes_or_no(answer: str) -> bool | None:
    """Its first word, whatever it is dressed in (**Yes**, 'no'.); None when it is neither."""
    word = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return word[1].lower() == "yes" if word else None


def read_nouns(file: Path) -> list[Noun]:
    """A noun or phrase a line, for prompts of a domain of one's own. Raises RcdeployError when there is none."""
    try:
        words = [" ".join(line.split()) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RcdeployError(f"the nouns {file} cannot be read: {error}") from None
    nouns = [Noun(word) for word in dict.fromkeys(words) if word and not word.startswith("#")]
    if not nouns:
        raise RcdeployError(f"{file} holds no noun", fix="Write one a line.")
    return nouns
