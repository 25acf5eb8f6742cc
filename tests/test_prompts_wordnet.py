"""WordNet's files, and the nouns that come with rcdeploy."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
from tiny_wordnet import write_wordnet

from rcdeploy.estimate import workload
from rcdeploy.prompts import animals
from rcdeploy.prompts.nouns import FILE, Noun, nouns_with_depth, visual_by_kind, wordnet_nouns, write_shipped
from rcdeploy.prompts.recipe_pool import visual_nouns
from rcdeploy.prompts.wordnet import WordNet
from rcdeploy_runtime.errors import RcdeployError


@pytest.fixture
def tiny(tmp_path: Path) -> WordNet:
    return WordNet.open(write_wordnet(tmp_path / "wordnet"))


@pytest.fixture
def shipped_tiny(tiny: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WordNet:
    """The nouns that come with rcdeploy are those of the tiny WordNet."""
    write_shipped(tiny, tmp_path / "wordnet" / "nouns.txt.gz")
    monkeypatch.setattr("rcdeploy.prompts.nouns.FILE", tmp_path / "wordnet" / "nouns.txt.gz")
    return tiny


@pytest.fixture
def no_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdeploy.prompts.wordnet.FILES", ("data.noun that nobody has", "index.noun"))


def test_synsets_senses_and_depth(tiny: WordNet) -> None:
    cat = tiny.synsets[tiny.senses["cat"][0]]
    assert (cat.words, cat.kind, cat.is_instance, cat.gloss) == (("cat",), "animal", False, "a feline")
    assert tiny.synsets[tiny.senses["human being"][0]].words == ("human", "human being")
    assert len(tiny.senses["crane"]) == 2 and tiny.synsets[tiny.senses["crane"][1]].kind == "animal"
    assert tiny.synsets[tiny.senses["baker"][1]].is_instance
    # the longest way: entity, thing, teapot, small teapot
    assert [tiny.depth(tiny.senses[w][0]) for w in ("entity", "thing", "teapot", "small teapot")] == [0, 1, 2, 3]
    below = {tiny.synsets[offset].words[0] for offset in tiny.hyponyms("animal")}
    assert {"animal", "cat", "Persian cat", "salmon"} <= below and "teapot" not in below
    with pytest.raises(RcdeployError, match="no noun 'cat' with a sense 2"):
        tiny.hyponyms("cat", 2)
    assert tiny.irregular_plurals() == {"wolf": ["wolves"], "crane of old": ["cranes of old"]}


def test_wordnet_that_is_not_there_or_damaged(tmp_path: Path, no_wordnet: None) -> None:
    with pytest.raises(RcdeployError, match=r"WordNet is not installed\n.*apt-get install wordnet-base"):
        WordNet.open()
    with pytest.raises(RcdeployError, match=r"is not in .*nowhere"):
        WordNet.open(tmp_path / "nowhere")


def test_damaged_wordnet_names_the_line(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path / "w")
    data = (folder / "data.noun").read_text()
    (folder / "data.noun").write_text(data.replace(" n 01 cat", " n zz cat"))
    with pytest.raises(RcdeployError, match=r"data\.noun, line 6: not as wndb\(5\)"):
        WordNet.open(folder)
    (folder / "data.noun").write_text("".join(line for line in data.splitlines(True) if " cat 0 " not in line))
    with pytest.raises(RcdeployError, match="has no synset .*which index.noun names"):
        WordNet.open(folder)


def test_nouns_are_the_things_a_text_encoder_would_think_of(tiny: WordNet) -> None:
    words = {noun.word for noun in wordnet_nouns(wordnet=tiny)}
    assert {"cat", "crane", "teapot", "salmon", "baker", "justice", "sealing wax"} <= words
    # a synonym, a name, an offensive word
    assert not words & {"human being", "lifting machine", "seal", "Persian cat", "persian cat", "oaf"}
    assert {n.word for n in wordnet_nouns(1, tiny)} == {"entity", "thing", "justice"}
    kinds = {noun.word: noun.kind for noun in visual_by_kind(wordnet_nouns(wordnet=tiny))}
    assert kinds["crane"] == "artifact" and kinds["salmon"] == "food" and not {"justice", "entity"} & set(kinds)


def installed() -> bool:
    try:
        WordNet.open()
    except RcdeployError:
        return False
    return True


@pytest.mark.skipif(not installed(), reason="WordNet is not installed")
def test_with_the_installed_wordnet(tmp_path: Path) -> None:
    wordnet = WordNet.open()
    depths = [wordnet.depth(wordnet.senses[word][0]) for word in ("animal", "dog", "poodle", "toy poodle")]
    assert depths == [6, 13, 14, 15]  # NLTK's max_depth
    if len(wordnet.synsets) == 82_115:  # 3.0, which the shipped lists are made from
        assert [
            line for line in animals.FILE.read_text().splitlines() if not line.startswith("#")
        ] == animals.animal_entries(wordnet)
        write_shipped(wordnet, tmp_path / "nouns.txt.gz")
        assert gzip.decompress((tmp_path / "nouns.txt.gz").read_bytes()) == gzip.decompress(FILE.read_bytes())


def test_the_shipped_nouns(no_wordnet: None) -> None:
    nouns = visual_nouns()
    words = {noun.word for noun in nouns}
    assert {"teapot", "poodle", "accountant", "alarm clock"} <= words and not words & {"toy poodle", "justice", "Paris"}
    assert len(nouns) == len(words) == workload.WORDNET_NOUNS
    digest = hashlib.sha256("\n".join(f"{noun.word}\t{noun.kind}" for noun in nouns).encode()).hexdigest()
    assert digest[:16] == "dfcf52293f792d59"  # what an installed WordNet 3.0 gave before the list was shipped
    deeper = set(wordnet_nouns(99)) - set(wordnet_nouns())
    assert Noun("toy poodle", "animal") in deeper and Noun("justice", "attribute") in wordnet_nouns()
    text = gzip.decompress(FILE.read_bytes()).decode()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text and FILE.stat().st_size < 300_000


def test_shipped_nouns_are_those_of_the_wordnet_they_were_made_from(tiny: WordNet, shipped_tiny: WordNet) -> None:
    for depth in (1, 14):
        assert wordnet_nouns(depth) == wordnet_nouns(depth, tiny)
    assert [noun for noun, depth in nouns_with_depth(tiny) if depth == 0] == [Noun("entity", "Tops")]
