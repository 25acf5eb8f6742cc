"""Prompts from nothing: WordNet's files, nouns, templates, balance, and recipes that say "wordnet"."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rcdeploy import latent_cache
from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.estimate import workload
from rcdeploy.prompts import animals, templates
from rcdeploy.prompts.generate import balanced, from_templates, quotas, write_lines
from rcdeploy.prompts.keywords import Keywords
from rcdeploy.prompts.nouns import FILE, Noun, nouns_with_depth, visual_by_kind, wordnet_nouns, write_shipped
from rcdeploy.prompts.plurals import plural
from rcdeploy.prompts.recipe_pool import find_pool, open_pool, paired_sources, pool_sources, visual_nouns
from rcdeploy.prompts.wordnet import LEXICOGRAPHER_FILES, WordNet
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy.run_folder import check_recipe
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

ROOT = Path(__file__).parent.parent
run = CliRunner().invoke

# words, lexicographer file, what it is, gloss; the order of a word's meanings is the order here
SYNSETS: list[tuple[list[str], str, list[str], str]] = [
    (["entity"], "Tops", [], "what exists"),
    (["thing"], "Tops", ["entity"], "a separate entity"),
    (["animal", "beast"], "Tops", ["thing"], "a living being that moves"),
    (["cat"], "animal", ["animal"], "a feline"),
    (["hominid"], "animal", ["animal"], "a primate"),
    (["human", "human_being"], "animal", ["hominid"], "us"),
    (["Persian_cat"], "animal", ["cat"], "a long-haired cat"),
    (["wolf"], "animal", ["animal"], "a wild canine"),
    (["male"], "animal", ["animal"], "one of a sex"),
    (["crane", "lifting_machine"], "artifact", ["thing"], "lifts"),
    (["sealing_wax", "seal"], "artifact", ["thing"], "closes letters"),
    (["crane"], "animal", ["animal"], "a large wader"),
    (["harbor_seal"], "animal", ["animal"], "a small seal"),
    (["teapot"], "artifact", ["thing"], "pours tea"),
    (["small_teapot"], "artifact", ["teapot", "thing"], "for one cup"),
    (["salmon"], "food", ["thing"], "flesh of the fish"),
    (["salmon"], "animal", ["animal"], "the fish"),
    (["justice"], "attribute", ["entity"], "being just"),
    (["oaf"], "person", ["thing"], "(offensive) a clumsy person"),
    (["baker"], "person", ["thing"], "bakes"),
    (["Baker"], "person", ["@i baker"], "a man of that name"),
]


def write_wordnet(folder: Path, synsets: list[tuple[list[str], str, list[str], str]] = SYNSETS) -> Path:
    """data.noun, index.noun and noun.exc as WordNet's: offsets are the places of the lines."""
    folder.mkdir(parents=True, exist_ok=True)
    licence = "  1 A licence in a few words.  \n  2 It says who may copy.  \n"
    offsets: list[int] = []
    for _ in range(2):  # the first time to learn how long the lines are
        at, lines, senses = len(licence), list[str](), dict[str, list[int]]()
        of = {words[0]: offset for (words, *_), offset in reversed(list(zip(synsets, offsets, strict=False)))}
        made: list[int] = []
        for words, kind, above, gloss in synsets:
            number = 3 if kind == "Tops" else 4 + LEXICOGRAPHER_FILES.index(kind)
            pointers = [("@i", name[3:]) if name.startswith("@i ") else ("@", name) for name in above]
            pointers.append(("~", "entity"))
            shown = " ".join(f"{symbol} {of.get(name, 0):08} n 0000" for symbol, name in pointers)
            spelt = " ".join(f"{word} 0" for word in words)
            made.append(at)
            line = f"{at:08} {number:02} n {len(words):02x} {spelt} {len(pointers):03} {shown} | {gloss}  \n"
            lines.append(line)
            at += len(line)
            for word in words:
                senses.setdefault(word.lower(), []).append(made[-1])
        offsets = made
    (folder / "data.noun").write_text(licence + "".join(lines))
    index = [
        f"{word} n {len(where)} 2 @ ~ {len(where)} 0 {' '.join(f'{o:08}' for o in where)}  \n"
        for word, where in sorted(senses.items())
    ]
    (folder / "index.noun").write_text(licence + "".join(index))
    (folder / "noun.exc").write_text("wolves wolf\ncranes_of_old crane_of_old\n")
    return folder


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


Recipes = Callable[..., Recipe]


def test_a_recipe_makes_its_prompts_once(shipped_tiny: WordNet, tiny_recipe: Recipes, tmp_path: Path) -> None:
    wanted = {"paired": ["wordnet"], "pool": ["wordnet"], "per_noun": 6, "paired_count": 12}
    recipe = tiny_recipe(prompts=wanted, cache={"folder": None})
    assert recipe.prompts.paired == ["wordnet"]  # no path
    said: list[str] = []
    (paired,), (pool,) = paired_sources(recipe, said.append), pool_sources(recipe, said.append)
    nouns = visual_nouns()
    lines = paired.read_text().splitlines()
    assert len(lines) == 12 and len(pool.read_text().splitlines()) == 6 * len(nouns) and len(said) == 2
    assert set(lines) <= set(pool.read_text().splitlines())
    before = {file: file.stat().st_mtime_ns for file in (paired, pool)}
    opened = open_pool(recipe, said.append)
    assert len(opened) == 6 * len(nouns)
    teacher = LatentDiffusionModel(recipe.teacher.path)
    folder = latent_cache.folder_of(recipe, teacher)
    latent_cache.prepare(recipe, teacher)
    assert sorted((folder / "prompts.txt").read_text().splitlines()) == sorted(lines)
    assert {file: file.stat().st_mtime_ns for file in (paired, pool)} == before and len(said) == 3
    assert not list((tmp_path / "pools").glob("*.claim"))
    # other prompts are other files; the same from nothing are the same bytes
    other = tiny_recipe(prompts={**wanted, "per_noun": 7}, cache={"folder": None})
    assert not {paired, pool} & {*paired_sources(other), *pool_sources(other)}
    text = paired.read_bytes()
    paired.unlink()
    assert paired_sources(recipe) == [paired] and paired.read_bytes() == text


def test_a_recipe_may_mix_wordnet_with_files(shipped_tiny: WordNet, tiny_recipe: Recipes) -> None:
    recipe = tiny_recipe(prompts={"paired": ["paired.txt", "wordnet"], "pool": [], "paired_count": 5, "per_noun": 2})
    assert len(open_pool(recipe)) == 20 + 5  # the captions of the file, and as many as are wanted of WordNet's


def test_the_estimate_counts_what_is_not_made_yet(
    shipped_tiny: WordNet, tiny_recipe: Recipes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workload, "WORDNET_NOUNS", len(visual_nouns()))
    wanted: dict[str, Any] = {"paired": ["wordnet"], "pool": ["wordnet", "further.txt"], "per_noun": 6}
    recipe = tiny_recipe(prompts=wanted | {"paired_count": 12})
    said = workload.count_prompts(recipe)
    assert not (tmp_path / "pools").exists()
    assert (said.paired[0], said.pool[0]) == (12, len(open_pool(recipe)))
    real = open_pool(recipe).manifest.facts["bytes"]
    assert abs(said.pool[1] - real) < 0.25 * real and any("WordNet" in note for note in said.notes)


def test_shipped_recipes_need_nothing_prepared(no_wordnet: None) -> None:
    files = [f for f in (ROOT / "recipes").glob("*.toml") if "stable-diffusion-v1-4" in f.read_text()]
    assert len(files) == 7
    for file in files:
        prompts = load_recipe(file, check_files=False).prompts
        assert (prompts.paired, prompts.pool, prompts.per_noun) == (["wordnet"], ["wordnet"], 128)
        assert prompts.paired_count == 212_000
        counts = workload.count_prompts(load_recipe(file))  # the teacher is a name on the hub
        assert counts.paired[0] == 212_000 and 3_000_000 < counts.pool[0] < 4_000_000


def test_runs_begun_before_there_was_per_noun_go_on(tiny_recipe: Recipes, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    before = recipe.resolved()
    del before["prompts"]["per_noun"]
    (tmp_path / "run").mkdir()
    Manifest("run", recipe=before).write(tmp_path / "run")
    check_recipe(tmp_path / "run", recipe)
    with pytest.raises(RcdeployError, match="prompts.paired_count: 12 -> 13"):
        check_recipe(tmp_path / "run", tiny_recipe(prompts={"paired_count": 13}))


def test_pools_are_found_by_their_digest(tiny_recipe: Recipes, tmp_path: Path) -> None:
    pool = open_pool(tiny_recipe())
    (tmp_path / "pools" / "no-pool").mkdir()
    assert find_pool(pool.digest) is None and find_pool(None, [pool.folder]) is None
    found = [find_pool(pool.digest, [pool.folder]), find_pool(pool.digest, ["nowhere"], [tmp_path])]
    assert [f is not None and f.digest for f in found] == [pool.digest] * 2
    assert find_pool("0" * 64, [pool.folder], [tmp_path]) is None


def test_listing_words_is_light_and_complete() -> None:
    lines = run(app, ["prompts", "words", "animals"]).stdout.splitlines()
    assert {"cat", "cats", "wolf", "wolves", "harbor seal", "harbor seals"} <= set(lines)
    failed = run(app, ["prompts", "words", "boats"])
    assert isinstance(failed.exception, RcdeployError) and "--words" in str(failed.exception)
    program = "import sys, rcdeploy.recipe, rcdeploy.cli.prompts\nassert 'numpy' not in sys.modules\n"
    program += "import rcdeploy.prompts.generate, rcdeploy.prompts.unseen\n"
    subprocess.run([sys.executable, "-c", program + "assert 'torch' not in sys.modules"], check=True)
