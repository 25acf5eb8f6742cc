"""Checks of a tokenizer.json from a stranger: text that it would insert, and regular expressions without an end.

The `tokenizers` library searches with oniguruma, which backtracks. With a prompt of 10,000 characters `a+a+b` takes
more than 12 seconds, `(a+)+b`, `a?` 25 times, a backreference or a recursion as long or to the limit of oniguruma, and
even `a+b` takes 2. What never has to give back what it has matched takes milliseconds, and is all that CLIP, GPT-2 and
BERT use: alternatives of literal characters and classes, of which only the last one may be repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import RcdeployError
from .limits import (
    MAX_NORMALIZER_CHARACTERS,
    MAX_NORMALIZERS,
    MAX_PATTERN_CHARACTERS,
    MAX_PATTERN_OPTIONALS,
    MAX_PATTERNS,
    MAX_TOKENIZER_BYTES,
)

PROPERTY = r"\\[pP]\{\^?\w{1,30}\}"
ESCAPE = r"\\[sSdDwWrntf]|\\[^\w\s]"
CLASS = rf"\[\^?(?:{PROPERTY}|{ESCAPE}|[^\[\]\\])+\]"
CHARACTER = r"[^\\()\[\]{}*+?|^$]"
ATOM = rf"(?:{PROPERTY}|{ESCAPE}|{CLASS}|{CHARACTER})"
TOKEN = re.compile(
    rf"(?P<last>\\s\+\(\?!\\S\)|{ATOM}(?:[*+]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}}))|(?P<optional>{ATOM}\?)|(?P<atom>{ATOM})|"
    r"(?P<bar>\|)",
    re.DOTALL,
)
"""`\\s+(?!\\S)`, GPT-2's, gives back one character at most"""
INSERTING_EVERYTHING = "Precompiled"
"""a normalizer with a table from characters to texts of any length"""


def check_tokenizer(file: Path, data: Any) -> None:
    """Raises RcdeployError for a tokenizer that would make much text of little, or search without an end.

    data: the contents of the file.
    """
    if not isinstance(data, dict):
        raise RcdeployError(f"{file} holds no JSON object")
    contents = list(_strings(data.get("normalizer")))
    too_long = any(len(c) > MAX_NORMALIZER_CHARACTERS for c in contents)
    if len(contents) > MAX_NORMALIZERS or too_long or INSERTING_EVERYTHING in _types(data.get("normalizer")):
        raise RcdeployError(f"{file}: its normalizer inserts more text than any that is known", fix="Export it anew.")
    parts = {key: value for key, value in data.items() if key not in ("model", "added_tokens")}
    patterns = list(_patterns(parts))
    if len(patterns) > MAX_PATTERNS:
        raise RcdeployError(f"{file} has {len(patterns)} patterns; at most {MAX_PATTERNS} are allowed")
    for pattern in patterns:
        if problem := pattern_problem(pattern):
            raise RcdeployError(
                f"{file}: the pattern {pattern[:80]!r} is refused: {problem}",
                fix="A pattern may list alternatives of characters and classes, and repeat the last of each. "
                "Those of CLIP's tokenizer do: export the package anew with it.",
            )


def check_tokenizer_size(file: Path) -> None:
    if file.is_file() and file.stat().st_size > MAX_TOKENIZER_BYTES:
        raise RcdeployError(f"{file} is too large to be a tokenizer ({file.stat().st_size:,} bytes)")


def pattern_problem(pattern: str) -> str | None:
    """Why a regular expression might take longer than a few passes over a prompt; None when it cannot."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return f"it has more than {MAX_PATTERN_CHARACTERS} characters"
    at, optionals, ended = 0, 0, False
    while at < len(pattern):
        match = TOKEN.match(pattern, at)
        if match is None:
            return f"{pattern[at : at + 10]!r} is a group, an anchor, a reference, or repeats what is repeated"
        if match.lastgroup == "bar":
            optionals, ended = 0, False
        elif ended:
            return "something follows what is repeated, so that the search would have to go back"
        else:
            optionals += match.lastgroup == "optional"
            ended = match.lastgroup == "last"
        if optionals > MAX_PATTERN_OPTIONALS:
            return f"an alternative has more than {MAX_PATTERN_OPTIONALS} optional parts"
        at = match.end()
    return None


def _patterns(part: Any) -> Iterator[str]:
    """The regular expressions anywhere in a part of a tokenizer."""
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and isinstance(part.get("Regex"), str):
        yield part["Regex"]
    for value in values:
        yield from _patterns(value)


def _types(normalizer: Any) -> Iterator[str]:
    """The types of a normalizer and of those inside it."""
    values = normalizer.values() if isinstance(normalizer, dict) else normalizer if isinstance(normalizer, list) else ()
    if isinstance(normalizer, dict) and isinstance(normalizer.get("type"), str):
        yield normalizer["type"]
    for value in values:
        yield from _types(value)


def _strings(normalizer: Any) -> Iterator[str]:
    """The strings that a normalizer, or one inside it, inserts into a prompt."""
    if isinstance(normalizer, list):
        for item in normalizer:
            yield from _strings(item)
    elif isinstance(normalizer, dict):
        for key in ("content", "prepend"):
            if isinstance(normalizer.get(key), str):
                yield normalizer[key]
        yield from _strings(normalizer.get("normalizers"))
