"""WordNet's nouns, read from its own database files: the things that images can show, from general to particular.

WordNet (Miller, 1995; Princeton University) groups words of one meaning into synsets. Two of its plain text files are
read here, as its manual page wndb(5) describes them, and one more if it is there:

    data.noun     a synset a line: its byte offset, its lexicographer file, its words, pointers to others, a gloss
    index.noun    a word a line: the offsets of its synsets, the most frequent meaning first
    noun.exc      irregular plurals: "mice mouse"

The same three files lie in Debian's package wordnet-base and in NLTK's corpora/wordnet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

FILES = ("data.noun", "index.noun")
LEXICOGRAPHER_FILES = (
    "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food", "group",
    "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity", "relation",
    "shape", "state", "substance", "time",
)  # fmt: skip
"""of nouns: number 4 is noun.act, and so on to 28; number 3 is noun.Tops, the 51 beginners of the hierarchies"""


@dataclass(frozen=True)
class Synset:
    """words: as they are spelt, with spaces. kind: the lexicographer file, "animal". hypernyms: offsets of what it is.

    is_instance: a single thing with a name of its own (Paris, Aristotle), not a kind of thing. gloss: the definition.
    """

    words: tuple[str, ...]
    kind: str
    hypernyms: tuple[int, ...]
    is_instance: bool
    gloss: str


@dataclass(frozen=True)
class WordNet:
    """synsets by offset; senses: a word in lower case, with spaces -> offsets of its synsets, most frequent first."""

    folder: Path
    synsets: dict[int, Synset]
    senses: dict[str, tuple[int, ...]]
    _depths: dict[int, int] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path | None = None) -> WordNet:
        """Reads data.noun and index.noun (20 MB) of `folder`, or of where WordNet is installed: about a second.

        Raises RcdeployError when it is not there, or its files are not in WordNet's format.
        """
        folder = find_wordnet(folder)
        synsets = _synsets(folder / FILES[0])
        wordnet = cls(folder, synsets, _senses(folder / FILES[1]))
        unknown = next((o for offsets in wordnet.senses.values() for o in offsets if o not in synsets), None)
        if unknown is not None or not synsets:
            what = "holds no synset" if unknown is None else f"has no synset {unknown:08}, which index.noun names"
            raise RcdeployError(f"{folder / FILES[0]} {what}", fix="Both files must be of one WordNet version.")
        return wordnet

    def depth(self, offset: int) -> int:
        """Steps from the root (entity, depth 0) down to a synset, on the longest way (NLTK's max_depth)."""
        if offset not in self._depths:
            above = [self.depth(h) for h in self.synsets[offset].hypernyms if h in self.synsets]
            self._depths[offset] = 1 + max(above, default=-1)
        return self._depths[offset]

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        children: dict[int, list[int]] = {}
        for offset, synset in self.synsets.items():
            for above in synset.hypernyms:
                children.setdefault(above, []).append(offset)
        return children

    def hyponyms(self, word: str, sense: int = 1) -> set[int]:
        """Offsets of the synset WORD.n.SENSE and of everything below it. Raises RcdeployError when there is none."""
        offsets = self.senses.get(word, ())
        if not 1 <= sense <= len(offsets):
            raise RcdeployError(f"the WordNet in {self.folder} has no noun {word!r} with a sense {sense}")
        hyponyms: set[int] = set()
        pending = [offsets[sense - 1]]
        while pending:
            if (offset := pending.pop()) not in hyponyms:
                hyponyms.add(offset)
                pending += self._children.get(offset, [])
        return hyponyms

    def irregular_plurals(self) -> dict[str, list[str]]:
        """Singular -> its irregular plurals, from noun.exc; empty where that file is missing."""
        plurals: dict[str, list[str]] = {}
        file = self.folder / "noun.exc"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            plural, *singulars = (form.replace("_", " ") for form in line.split())
            for singular in singulars:
                plurals.setdefault(singular, []).append(plural)
        return plurals

    def licence(self) -> list[str]:
        """WordNet's licence, which asks to stand on every copy of what is made from it: comment lines."""
        lines = []
        for line in (self.folder / FILES[0]).open(encoding="utf-8"):
            if not line.startswith("  "):
                break
            lines.append(f"# {line.strip().partition(' ')[2]}".rstrip())
        return lines


def find_wordnet(folder: Path | None = None) -> Path:
    """The folder with WordNet's files: `folder`, else WNSEARCHDIR or WNHOME as WordNet's own tools, else usual places.

    Raises RcdeployError that says how to get WordNet when there is none.
    """
    environment = [os.environ.get("WNSEARCHDIR"), os.environ.get("WNHOME", "") and os.environ["WNHOME"] + "/dict"]
    usual = [
        *(Path(place) for place in environment if place),
        Path("/usr/share/wordnet"),
        Path("/usr/local/share/wordnet/dict"),
        Path("/opt/homebrew/opt/wordnet/dict"),
        Path.home() / "nltk_data" / "corpora" / "wordnet",
    ]
    for place in usual if folder is None else [folder, folder / "dict"]:
        if all((place / name).is_file() for name in FILES):
            return place
    where = "is not installed" if folder is None else f"is not in {folder}: it has no {' and '.join(FILES)}"
    raise RcdeployError(
        f"WordNet {where}",
        fix="Install it (Debian, Ubuntu: apt-get install wordnet-base; macOS: brew install wordnet), or set "
        "WNSEARCHDIR (or --wordnet) to a folder with data.noun and index.noun, such as NLTK's corpora/wordnet.",
    )


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of every line but those of the licence, which begin with two spaces; a gloss comes last."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.startswith("  "):
                    entry, _, gloss = line.partition(" | ")
                    yield number, [*entry.split(), gloss.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise RcdeployError(f"{file} cannot be read: {error}") from None


def _synsets(file: Path) -> dict[int, Synset]:
    """data.noun: offset, lexicographer file, "n", number of words (hex), (word, id) each, number of pointers, pointers.

    A pointer is four fields: its symbol (@ hypernym, @i the kind of which this is an instance), offset, pos, source.
    """
    synsets = {}
    for number, row in _rows(file):
        try:
            words = int(row[3], 16)
            *pointers, gloss = row[5 + 2 * words :]
            above = [(pointers[i], int(pointers[i + 1])) for i in range(0, len(pointers), 4) if pointers[i][0] == "@"]
            kind = LEXICOGRAPHER_FILES[int(row[1]) - 4] if row[1] != "03" else "Tops"
            synsets[int(row[0])] = Synset(
                tuple(word.replace("_", " ") for word in row[4 : 4 + 2 * words : 2]),
                kind,
                tuple(offset for _, offset in above),
                any(symbol == "@i" for symbol, _ in above),
                gloss,
            )
        except (ValueError, IndexError) as error:
            raise RcdeployError(f"{file}, line {number}: not as wndb(5) describes it ({error})") from None
    return synsets


def _senses(file: Path) -> dict[str, tuple[int, ...]]:
    """index.noun: word, "n", number of synsets, ..., and that many offsets at the end."""
    senses = {}
    for number, row in _rows(file):
        try:
            senses[row[0].replace("_", " ")] = tuple(int(offset) for offset in row[-1 - int(row[2]) : -1])
        except (ValueError, IndexError) as error:
            raise RcdeployError(f"{file}, line {number}: not as wndb(5) describes it ({error})") from None
    return senses
