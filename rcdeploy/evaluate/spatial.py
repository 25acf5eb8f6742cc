"""T2I-CompBench's score of places: are both objects of a prompt in the image, and where the prompt says?

What its evaluator does (UniDet_eval/2D_spatial_eval.py of github.com/Karine-Huang/T2I-CompBench), whoever detects: half
of a score is how sure the detector is of both objects, half is how far their boxes' centres and overlap agree with the
words; below 0.5 it counts as 0. Prompts that say "on top of", as complex ones do, get no second half there, nor here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

PLACES = ("on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of")
NEAR = PLACES[:3]
DIRECTIONS = {
    "on the left of": (1, 0),
    "on the right of": (-1, 0),
    "on the top of": (0, 1),
    "on the bottom of": (0, -1),
}
"""from the first object's centre to the second's, (x, y), y downwards"""
PREPOSITIONS = ("on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near")
"""around which the objects of complex prompts are looked for"""
PEOPLE = ("girl", "boy", "man", "woman")
"""are looked for as "person", a class of UniDet's"""
MAX_IOU = 0.1
NEAR_PIXELS = 150
"""of an image as UniDet reads it"""
SHORTER_SIDE, LONGER_SIDE = 479, 480
"""pixels: the size at which it does"""
LEAST_SCORE = 0.5


@dataclass(frozen=True)
class Box:
    """A detected object: its name, how sure the detector is, and (left, top, right, bottom) in pixels."""

    name: str
    score: float
    corners: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.corners
        return (left + right) / 2, (top + bottom) / 2


class Detector(Protocol):
    """Finds objects by their names."""

    def __call__(self, image: Tensor, names: Sequence[str]) -> list[Box]:
        """image uint8 [3, h, w] -> the boxes of objects with these names, in pixels of reading_size(h, w)."""


@dataclass(frozen=True)
class Relation:
    """What a prompt says of two objects: "a lamp", "next to", "a giraffe". Without objects nothing is looked for."""

    objects: tuple[str, str] | None
    place: str | None


def simple_relation(doc: Any) -> Relation:
    """Of a spatial prompt (spaCy's Doc): its first and its last noun."""
    nouns = [token.text for token in doc if token.pos_ == "NOUN"]
    return Relation(_as_classes(nouns[0], nouns[-1]) if nouns else None, _place(doc.text))


def complex_relation(doc: Any) -> Relation:
    """Of a complex prompt: the nouns before and after its only preposition of place."""
    nouns: list[str] = []
    for i in range(len(doc)):
        if length := next((n for n in (3, 2, 1) if doc[i : i + n].text in PREPOSITIONS), 0):
            nouns += _noun_before(doc, i)
            nouns += _noun_after(doc, i + length)
    return Relation(_as_classes(*nouns) if len(nouns) == 2 else None, _place(doc.text))


def _noun_before(doc: Any, end: int) -> Iterator[str]:
    yield from [doc[j].text for j in range(end - 1, -1, -1) if doc[j].pos_ in ("NOUN", "PROPN")][:1]


def _noun_after(doc: Any, start: int) -> Iterator[str]:
    """The first noun; without one the last word of the first name that does not end the prompt."""
    common = [doc[j].text for j in range(start, len(doc)) if doc[j].pos_ == "NOUN"]
    pairs = ((doc[j], doc[j + 1]) for j in range(start, len(doc) - 1))
    names = [token.text for token, following in pairs if token.pos_ == "PROPN" and following.pos_ != "PROPN"]
    yield from (common or names)[:1]


def _as_classes(first: str, second: str) -> tuple[str, str]:
    first, second = ("person" if name in PEOPLE else name for name in (first, second))
    return first, second


def _place(prompt: str) -> str | None:
    return next((place for place in PLACES if place in prompt), None)


def reading_size(height: int, width: int) -> tuple[float, float]:
    """(height, width) at which boxes are compared: the shorter side SHORTER_SIDE, the longer at most LONGER_SIDE."""
    scale = min(SHORTER_SIDE / min(height, width), LONGER_SIDE / max(height, width))
    return height * scale, width * scale


def spatial_score(boxes: Sequence[Box], relation: Relation) -> float:
    """The score of an image from its boxes; of several with one name the surest counts."""
    if relation.objects is None:
        return 0.0
    first, second = (
        max((box for box in boxes if box.name == name), key=lambda box: box.score, default=None)
        for name in relation.objects
    )
    score = sum(0.25 * box.score for box in (first, second) if box)
    if first and second:
        score += place_score(relation.place, first, second) / 2
    return score if score >= LEAST_SCORE else 0.0


def place_score(place: str | None, first: Box, second: Box) -> float:
    """How far two boxes agree with a place, 0 to 1."""
    x, y = (b - a for a, b in zip(first.centre, second.centre, strict=True))
    if place in NEAR:
        nearest = min(abs(x), abs(y)) < NEAR_PIXELS
        return 1.0 if nearest else NEAR_PIXELS / max(abs(x), abs(y))
    if place not in DIRECTIONS:
        return 0.0
    along, across = (x, y) if DIRECTIONS[place][0] else (y, x)
    if along * sum(DIRECTIONS[place]) <= 0 or abs(along) <= abs(across):
        return 0.0
    overlap = iou(first, second)
    return 1.0 if overlap < MAX_IOU else MAX_IOU / overlap


def iou(first: Box, second: Box) -> float:
    """Intersection over union."""
    a, b = first.corners, second.corners
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0
