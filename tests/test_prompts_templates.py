"""Prompts made by templates, and a balanced subset of them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_wordnet import write_wordnet
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.prompts import templates
from rcdeploy.prompts.generate import balanced, from_templates, quotas, write_lines
from rcdeploy.prompts.nouns import Noun, write_shipped
from rcdeploy.prompts.wordnet import WordNet

run = CliRunner().invoke


@pytest.fixture
def tiny(tmp_path: Path) -> WordNet:
    return WordNet.open(write_wordnet(tmp_path / "wordnet"))


@pytest.fixture
def shipped_tiny(tiny: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WordNet:
    """The nouns that come with rcdeploy are those of the tiny WordNet."""
    write_shipped(tiny, tmp_path / "wordnet" / "nouns.txt.gz")
    monkeypatch.setattr("rcdeploy.prompts.nouns.FILE", tmp_path / "wordnet" / "nouns.txt.gz")
    return tiny


def test_templates_are_different_repeatable_and_about_the_noun() -> None:
    noun = Noun("teapot", "artifact")
    made = templates.templates(noun, 300)
    assert len(set(made)) == len(made) == 300 and all("teapot" in prompt for prompt in made)
    assert templates.templates(noun, 128) == made[:128] and templates.templates(noun, 128, seed=1) != made[:128]
    beginnings = Counter(prompt.split("teapot")[0] for prompt in made)
    assert len(beginnings) > 150 and max(beginnings.values()) < 30
    assert len(set(templates.templates(Noun("x", "substance"), 2000))) == 2000


def test_templates_change_with_their_version() -> None:
    """Prompts of recipes are kept under VERSION: whoever changes what is made must raise it, and this digest."""
    kinds = ("animal", "artifact", "body", "food", "object", "person", "plant", "substance", "")
    made = [prompt for kind in kinds for prompt in templates.templates(Noun("urn", kind), 200)]
    assert (templates.VERSION, hashlib.sha256("\n".join(made).encode()).hexdigest()[:16]) == (1, "b7ad6ca4c8b7a0f7")


@pytest.mark.parametrize(
    ("phrase", "article"), [("urn", "an"), ("unicorn", "a"), ("hour", "an"), ("eel", "an"), ("ewe", "a"), ("cat", "a")]
)
def test_articles(phrase: str, article: str) -> None:
    assert templates.with_article(phrase) == f"{article} {phrase}"


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([5, 5, 5], 9, [3, 3, 3]),
        ([1, 5, 9], 9, [1, 4, 4]),
        ([2, 2], 10, [2, 2]),
        ([0, 3], 2, [0, 2]),
        ([4], 0, [0]),
        ([], 3, []),
    ],
)
def test_quotas(counts: list[int], total: int, expected: list[int]) -> None:
    assert quotas(counts, total, np.random.default_rng(0)) == expected


def test_quotas_give_the_odd_ones_by_chance() -> None:
    given = np.array([quotas([9] * 10, 13, np.random.default_rng(seed)) for seed in range(300)])
    assert (given.sum(1) == 13).all() and set(given.ravel()) == {1, 2} and (abs(given.mean(0) - 1.3) < 0.15).all()


def test_the_balanced_part_takes_as_many_of_each_noun(tmp_path: Path) -> None:
    nouns = [Noun(word) for word in ("cup", "jug", "vase", "bowl")]
    prompts_of, counts = from_templates(20), [20] * 4
    part = list(balanced(nouns, prompts_of, counts, 30, seed=0))
    assert len(set(part)) == 30 and set(part) <= {p for noun in nouns for p in prompts_of(noun)}
    of_noun = [sum(p in part for p in prompts_of(noun)) for noun in nouns]
    assert sorted(of_noun) == [7, 7, 8, 8]
    assert list(balanced(nouns, prompts_of, counts, 30, seed=0)) == part
    assert list(balanced(nouns, prompts_of, counts, 30, seed=1)) != part
    files = [tmp_path / name for name in ("a.txt.gz", "b.txt.gz")]
    assert [write_lines(file, part) for file in files] == [30, 30] and files[0].read_bytes() == files[1].read_bytes()


def test_generate_command_from_templates(shipped_tiny: WordNet, tmp_path: Path) -> None:
    command = ["prompts", "generate", "--out", "made", "--per-noun", "10", "--paired", "24", "--json"]
    counts = json.loads(run(app, command).stdout)[0]
    nouns = (tmp_path / "made/nouns.txt").read_text().splitlines()
    assert counts == {"nouns": len(nouns), "prompts": 10 * len(nouns), "paired": 24}
    pool = gzip.decompress((tmp_path / "made/pool.txt.gz").read_bytes()).decode().splitlines()
    paired = gzip.decompress((tmp_path / "made/paired.txt.gz").read_bytes()).decode().splitlines()
    assert len(pool) == len(set(pool)) == counts["prompts"] and len(set(paired)) == 24 and set(paired) <= set(pool)
    before = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    assert run(app, command).exit_code == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()} == before
    assert run(app, [*command, "--max-nouns", "3"]).exit_code == 0
    assert len((tmp_path / "made/nouns.txt").read_text().splitlines()) < 4
    (tmp_path / "mine.txt").write_text("# my domain\nturbine blade\nturbine blade\n")
    counts = json.loads(run(app, [*command, "--nouns", "mine.txt"]).stdout)[0]
    assert counts == {"nouns": 1, "prompts": 10, "paired": 10}
