"""Prompts about a noun without a language model: phrases combined at random.

A stand-in for the paper's prompts, which GPT-3.5 wrote: the phrases vary medium, look, colour, number, action, place,
light and framing, but they know nothing of the noun except its kind, so that a whale may wait on a station platform.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from ..recipe import MAX_PROMPTS_PER_NOUN
from .nouns import Noun
from .plurals import plural

VERSION = 1
"""to be raised with any change of the prompts: the files that recipes make of them are named after it"""
MEDIA = (
    "a photo of", "a photograph of", "a close-up photo of", "a black-and-white photograph of", "an oil painting of",
    "a watercolour of", "a pencil sketch of", "an ink drawing of", "a digital illustration of", "a 3D rendering of",
    "a studio portrait of", "a vintage postcard of", "a children's book illustration of", "a paper collage of",
    "a woodcut of", "a pastel drawing of", "a film still of", "a poster of",
)  # fmt: skip
COLOURS = (
    "red", "orange", "yellow", "green", "turquoise", "blue", "violet", "pink", "brown", "black", "white", "grey",
    "golden", "silver", "dark blue", "pale green",
)  # fmt: skip
NUMBERS = ("two", "three", "four", "five", "several", "a row of", "a group of", "many")
LIGHTS = (
    "at sunrise", "at noon", "at dusk", "at night", "in soft morning light", "under a stormy sky", "in thick fog",
    "lit by candles", "in bright sunshine", "under neon lights", "in falling snow", "after the rain", "by moonlight",
    "against the light", "in autumn", "under an overcast sky",
)  # fmt: skip
FRAMINGS = (
    "seen from above", "seen from below", "in the distance", "from the side", "in sharp focus",
    "with a blurred background", "highly detailed", "in muted colours", "in vivid colours", "wide-angle view",
    "minimalist composition", "centred", "with long shadows", "on a plain background", "in an empty scene",
    "in the foreground",
)  # fmt: skip
OUTDOORS = (
    "on a beach", "in a forest", "in a meadow", "beside a lake", "on a mountain trail", "in a desert",
    "in a narrow street", "on a market square", "in a garden", "on a bridge", "near a lighthouse",
    "in front of a brick wall", "on a farm", "in a harbour",
    "on a station platform", "in a ruined castle", "on a snowy hill", "in a city park",
)  # fmt: skip
INDOORS = (
    "on a wooden table", "on a marble counter", "in a glass case", "on a windowsill", "in a museum", "on a shelf",
    "in a workshop", "in a kitchen", "on a white cloth", "in a cardboard box", "in a shop window", "on a stone floor",
    "in an old attic", "in a library", "on a metal tray", "in a laboratory",
)  # fmt: skip
LOOKS = {
    "animal": ("young", "old", "small", "large", "fluffy", "wet", "sleepy", "wild", "curious", "majestic"),
    "person": ("young", "elderly", "smiling", "tired", "elegant", "cheerful", "serious", "proud", "busy", "thoughtful"),
    "food": ("fresh", "steaming", "sliced", "frozen", "home-made", "delicious", "dried", "roasted"),
    "substance": ("glossy", "rough", "powdered", "melted", "raw", "shiny", "crumbling", "pure"),
    "plant": ("blooming", "young", "tall", "withered", "lush", "wild", "tiny", "dew-covered"),
    "": ("old", "new", "small", "huge", "broken", "shiny", "dusty", "ornate", "simple", "antique", "modern", "wooden"),
}
ACTIONS = {
    "animal": ("running", "sleeping", "eating", "drinking", "looking at the camera", "hiding", "playing", "resting"),
    "person": ("walking", "laughing", "reading a letter", "waving", "working", "sitting", "dancing", "waiting"),
    "": ("covered in dust", "half in shadow", "wrapped in ribbon", "lying upside down", "glowing", "half hidden"),
}
MASS = ("food", "substance")
"""kinds that go without article and number"""


def templates(noun: Noun, count: int, seed: int = 0) -> list[str]:
    """`count` prompts (MAX_PROMPTS_PER_NOUN at the most) with the noun in them, all different.

    A function of (noun, seed): other nouns do not matter, and the first prompts are the same whatever `count` is.
    """
    count = min(count, MAX_PROMPTS_PER_NOUN)
    prompts: dict[str, None] = {}
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(noun.word.encode())]))
    while len(prompts) < count:
        for numbers in rng.integers(0, 2**31, (64, 8)).tolist():
            prompts[_prompt(noun, numbers)] = None
            if len(prompts) == count:
                break
    return list(prompts)


def _prompt(noun: Noun, numbers: list[int]) -> str:
    """numbers: 8 of at least 2^20, each of which decides whether a phrase is used, and which."""
    medium, subject, look, action, place, light, framing, order = numbers
    parts = []
    if medium % 3:
        parts.append(_pick(MEDIA, medium))
    parts.append(_subject(noun, subject, _pick(LOOKS.get(noun.kind, LOOKS[""]), look)))
    if action % 2:
        parts.append(_pick(ACTIONS.get(noun.kind, ACTIONS[""]), action))
    if place % 4:
        living = noun.kind in ("animal", "person", "plant")
        parts.append(_pick(OUTDOORS if living or place % 4 == 1 else INDOORS, place))
    ends = [_pick(LIGHTS, light)] * (light % 2) + [_pick(FRAMINGS, framing)] * (framing % 2)
    return ", ".join([" ".join(parts), *(ends if order % 2 else reversed(ends))])


def _pick(phrases: tuple[str, ...], number: int) -> str:
    return phrases[(number >> 4) % len(phrases)]


def _subject(noun: Noun, number: int, look: str) -> str:
    colour = _pick(COLOURS, number)
    if noun.kind in MASS:
        return (noun.word, f"{look} {noun.word}", f"a pile of {noun.word}", f"{look} {noun.word} in a bowl")[number % 4]
    if number % 8 == 7:
        return f"{_pick(NUMBERS, number)} {plural(noun.word)}"
    if noun.kind == "person":
        dressed = with_article(f"{noun.word} in {colour}")
        return (with_article(noun.word), with_article(f"{look} {noun.word}"), dressed)[number % 3]
    described = (noun.word, f"{look} {noun.word}", f"{colour} {noun.word}", f"{look} {colour} {noun.word}")
    return with_article(described[number % 4])


def with_article(phrase: str) -> str:
    """\"an\" before a vowel that is heard, as far as spelling tells: an urn, a unicorn, an hour."""
    vowel = re.match(r"[aeiou]|hour|heir|honest", phrase)
    consonant = re.match(r"uni(?![nm])|us[ae]|ut[ei]|ur[aeiou]|eu|ew[er]|one\b", phrase)
    return f"{'an' if vowel and not consonant else 'a'} {phrase}"
