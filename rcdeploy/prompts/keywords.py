"""Searches captions for words: whole words and phrases, singular and plural, case ignored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from .plurals import plurals
from .readers import check_regular_file

_TOKENS = re.compile(r"[^\W_]+").findall
Phrases = dict[str, list[tuple[list[str], str]]]
"""first token -> (all tokens, the listed word) of the forms that begin with it"""


class Keywords:
    """Finds listed words in captions, but not inside of listed exceptions ("hot dog" is no dog).

    Hyphens and apostrophes separate words: "guinea-pig" is "guinea pig".
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises RcdeployError when no word is listed.

        Args:
            entries: a singular each; where `plurals` does not know its plurals, they follow after commas ("goose,
                geese"), or a comma alone for a word that has none. An entry that begins with "!" is an exception, a
                phrase that means something else.
        """
        self.forms: dict[str, list[str]] = {}
        exceptions: list[str] = []
        for entry in entries:
            words = [" ".join(word.lower().split()) for word in entry.removeprefix("!").split(",")]
            singular, *listed = words
            if not singular:
                continue
            forms = [singular, *(form for form in listed if form)] if listed else [singular, *plurals(singular)]
            if entry.startswith("!"):
                exceptions += forms
            else:
                known = self.forms.get(singular, [])
                self.forms[singular] = list(dict.fromkeys([*known, *forms]))
        if not self.forms:
            raise RcdeployError("the list of words is empty")
        self.words = sorted(self.forms)
        self._phrases = _by_first_token((form, word) for word in self.words for form in sorted(self.forms[word]))
        self._exceptions = _by_first_token((form, form) for form in exceptions)

    @classmethod
    def read(cls, file: Path) -> Keywords:
        """An entry a line; empty lines and those that begin with # do not count."""
        check_regular_file(file)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RcdeployError(f"the list of words {file} cannot be read: {error}") from None
        return cls(line for line in lines if not line.startswith("#"))

    def find(self, caption: str) -> str | None:
        """The listed word that comes first in the caption, in its listed form; None when there is none."""
        tokens = _TOKENS(caption.lower())
        excepted: set[int] | None = None
        for i, token in enumerate(tokens):
            for phrase, word in self._phrases.get(token, ()):
                if tokens[i : i + len(phrase)] == phrase:
                    if excepted is None:
                        excepted = self._excepted(tokens)
                    if not excepted.issuperset(range(i, i + len(phrase))):
                        return word
        return None

    def _excepted(self, tokens: list[str]) -> set[int]:
        """Positions of the tokens that belong to exceptions."""
        positions: set[int] = set()
        for i, token in enumerate(tokens):
            for phrase, _ in self._exceptions.get(token, ()):
                if tokens[i : i + len(phrase)] == phrase:
                    positions.update(range(i, i + len(phrase)))
        return positions

    def all_forms(self) -> Iterator[str]:
        """Every singular and plural that is found, sorted."""
        yield from sorted({form for forms in self.forms.values() for form in forms})


def _by_first_token(forms: Iterable[tuple[str, str]]) -> Phrases:
    phrases: Phrases = {}
    for form, word in forms:
        if tokens := _TOKENS(form):
            phrases.setdefault(tokens[0], []).append((tokens, word))
    return phrases
