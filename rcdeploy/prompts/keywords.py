"""Words looked for in captions: whole words and phrases, singular and plural, whatever the case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

_TOKENS = re.compile(r"[^\W_]+").findall
IRREGULAR = {
    "child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
    "louse": "lice", "ox": "oxen", "die": "dice", "sheep": "sheep", "deer": "deer", "aircraft": "aircraft",
    "series": "series", "species": "species", "cactus": "cacti",
}  # fmt: skip
"""last words whose plural no rule makes"""
NOT_MEN = ("human", "german", "roman", "norman", "ottoman", "shaman", "talisman", "caiman", "cayman")


def plural(noun: str) -> str:
    """The plural of a noun or phrase, made of its last word."""
    last = re.split("[ -]", noun)[-1]
    if last in IRREGULAR:
        return noun.removesuffix(last) + IRREGULAR[last]
    if last.endswith("man") and last not in NOT_MEN:
        return noun[:-2] + "en"
    if last.endswith("fish"):
        return noun
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search(r"(?:[lr]f|[nw]ife|life|eaf|oaf)$", noun):  # wolf, knife, loaf; roof and cliff take an s
        return re.sub(r"fe?$", "ves", noun)
    return noun + "s"


def forms(word: str) -> set[str]:
    """A word or phrase and every plural it might have: too many rather than too few, as they are only looked for."""
    return {word, word + "s", word + "es", plural(word)}


class Keywords:
    """Finds the listed words in captions. Hyphens and apostrophes part words: "guinea-pig" is "guinea pig"."""

    def __init__(self, words: Iterable[str]) -> None:
        """words: singulars; irregular plurals that `forms` does not know as entries of their own.

        Raises RcdeployError when there is none.
        """
        self.words = sorted({" ".join(word.lower().split()) for word in words} - {""})
        if not self.words:
            raise RcdeployError("the list of words is empty")
        self._starting_with: dict[str, list[tuple[list[str], str]]] = {}
        for word in self.words:
            for form in sorted(forms(word)):
                if tokens := _TOKENS(form):
                    self._starting_with.setdefault(tokens[0], []).append((tokens, word))

    @classmethod
    def read(cls, file: Path) -> Keywords:
        """A word or phrase a line; empty lines and those that begin with # do not count."""
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RcdeployError(f"the list of words {file} cannot be read: {error}") from None
        return cls(line for line in lines if not line.startswith("#"))

    def find(self, caption: str) -> str | None:
        """The listed word that comes first in the caption, as it is listed; None when there is none."""
        tokens = _TOKENS(caption.lower())
        for i, token in enumerate(tokens):
            for wanted, word in self._starting_with.get(token, ()):
                if tokens[i : i + len(wanted)] == wanted:
                    return word
        return None

    def all_forms(self) -> Iterator[str]:
        """Every singular and plural that is found, sorted."""
        yield from sorted({form for word in self.words for form in forms(word)})
