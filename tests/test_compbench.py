"""T2I-CompBench's categories: scores of known boxes, 3-in-1, averages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch
from detectors import save_owl
from evaluation import evaluate, save_clip
from spacy.language import Language
from spacy.tokens import Doc
from test_vqa import saved, small
from transformers import BlipForQuestionAnswering

from rcdeploy.evaluate.compbench import Compbench, compbench_scores, without_adjectives
from rcdeploy.evaluate.compbench_prompts import CompbenchPrompts, category_of
from rcdeploy.evaluate.spatial import Box, Relation, complex_relation, place_score, simple_relation, spatial_score
from rcdeploy.evaluate.vqa import NounPhrases
from rcdeploy.report.evaluations import _networks
from rcdeploy.sweep.spec import read_score
from rcdeploy_runtime.errors import RcdeployError

NOUNS = ("cat", "sofa", "shirt", "shoe", "bag", "coat", "dress", "girl", "hat", "rack", "shelf")
ADJECTIVES = ("red", "blue", "soft", "big")


def box(name: str, x: float, y: float, size: float = 40, score: float = 0.9) -> Box:
    """A square around (x, y)."""
    return Box(name, score, (x - size / 2, y - size / 2, x + size / 2, y + size / 2))


# what a prompt says


@Language.component("known_words")
def known_words(doc: Doc) -> Doc:
    """Parts of speech of the words of these tests; names are capitalised; a noun phrase ends with its noun."""
    words = [token.text for token in doc]
    pos = [
        "NOUN" if w in NOUNS else "ADJ" if w in ADJECTIVES else "PROPN" if w.istitle() else "DET" if w == "a" else "ADP"
        for w in words
    ]
    heads = [next((j for j in range(i, len(words)) if pos[j] in ("NOUN", "ADP")), i) for i in range(len(words))]
    deps = ["ROOT" if heads[i] == i else "det" for i in range(len(words))]
    return Doc(doc.vocab, words=words, spaces=[t.whitespace_ != "" for t in doc], pos=pos, heads=heads, deps=deps)


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    pipeline = spacy.blank("en")
    pipeline.add_pipe("known_words")
    pipeline.to_disk(tmp_path / "reader")
    return tmp_path / "reader"


def parse(reader: Path, prompt: str) -> Any:
    return NounPhrases(str(reader)).parse(prompt)


@pytest.mark.parametrize(
    ("prompt", "objects", "place"),
    [
        ("a cat next to a sofa", ("cat", "sofa"), "next to"),
        ("a girl on the top of a red shoe", ("person", "shoe"), "on the top of"),
        ("a cat", ("cat", "cat"), None),
        ("above", None, None),
    ],
)
def test_the_objects_of_a_spatial_prompt(
    reader: Path, prompt: str, objects: tuple[str, str] | None, place: str | None
) -> None:
    assert simple_relation(parse(reader, prompt)) == Relation(objects, place)


@pytest.mark.parametrize(
    ("prompt", "objects", "place"),
    [
        ("a red cat on the left of a soft sofa", ("cat", "sofa"), "on the left of"),
        ("a red hat was on top of a blue coat rack", ("hat", "coat"), None),  # no second half, as in the benchmark
        ("a big hat near Anna Smith on a shelf", ("hat", "shelf"), "near"),
        ("a hat near Anna Smith with", ("hat", "Smith"), "near"),
        ("a cat near a sofa next to a bag", None, "next to"),  # two places
        ("a cat within a bag", None, None),
    ],
)
def test_the_objects_of_a_complex_prompt(
    reader: Path, prompt: str, objects: tuple[str, str] | None, place: str | None
) -> None:
    assert complex_relation(parse(reader, prompt)) == Relation(objects, place)


def test_clip_reads_complex_prompts_without_adjectives(reader: Path) -> None:
    assert without_adjectives(parse(reader, "a red cat near a soft blue sofa")) == "a cat near a sofa"


# boxes


@pytest.mark.parametrize(
    ("place", "second", "expected"),
    [
        ("on the left of", box("b", 300, 120), 1),
        ("on the right of", box("b", 300, 120), 0),
        ("on the right of", box("b", 10, 90), 1),
        ("on the left of", box("b", 120, 300), 0),  # rather below
        ("on the top of", box("b", 120, 300), 1),
        ("on the bottom of", box("b", 120, 300), 0),
        ("on the bottom of", box("b", 100, 20), 1),
        ("on the left of", box("b", 120, 100), 0.1 / (1 / 3)),  # half of each overlaps: a third of the union
        ("next to", box("b", 400, 240), 1),  # 140 pixels in one direction are near
        ("near", box("b", 400, 300), 150 / 300),
        ("on side of", box("b", 100, 100), 1),
        ("inside", box("b", 300, 100), 0),
        (None, box("b", 300, 100), 0),
    ],
)
def test_places_of_known_boxes(place: str | None, second: Box, expected: float) -> None:
    assert place_score(place, box("a", 100, 100), second) == pytest.approx(expected)


def test_a_score_is_half_detection_and_half_place() -> None:
    left = Relation(("a", "b"), "on the left of")
    boxes = [box("a", 400, 100, score=0.6), box("a", 100, 100, score=0.8), box("b", 300, 100, score=0.4)]
    assert spatial_score(boxes, left) == pytest.approx(0.25 * 0.8 + 0.25 * 0.4 + 0.5), "the surest of two"
    assert spatial_score(boxes, Relation(("b", "a"), "on the left of")) == 0, "0.3 is below 0.5"
    assert spatial_score(boxes[:2], left) == 0, "one object alone"
    assert spatial_score([box("a", 0, 0, score=1), box("b", 9, 9, score=1)], Relation(("a", "b"), None)) == 0.5
    assert spatial_score(boxes, Relation(None, "near")) == 0
    assert spatial_score([box("a", 5, 5, size=0, score=0.9)], Relation(("a", "a"), "near")) == pytest.approx(0.95)


# categories


def write(folder: Path, **files: str) -> list[Path]:
    for name, lines in files.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines.split("; ")))
    return [folder / f"{name}.txt" for name in files]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    lists = {"complex_val_spatial": "A red cat near a sofa. Or so", "complex_val_action": "a red bag in a coat"}
    write(tmp_path, **lists)
    return write(
        tmp_path,
        color_val="a red shirt",
        shape_val="a big shoe",
        texture_val="a soft bag",
        spatial_val="a cat next to a sofa",
        non_spatial_val="a girl with a bag",
        complex_val="a red cat near a sofa; a red bag in a coat; a blue dress near a hat",
    )


class KnownBoxes:
    """Finds every object, one beside the other, with a score of 0.8."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, image: torch.Tensor, names: Sequence[str]) -> list[Box]:
        self.asked.append(list(names))
        return [box(name, 100 * i, 100, score=0.8) for i, name in enumerate(names)]


def test_every_category_has_its_own_score(files: list[Path], reader: Path) -> None:
    prompts = CompbenchPrompts.read(files)
    detector, texts = KnownBoxes(), []

    def clip(images: torch.Tensor, given: Sequence[str]) -> torch.Tensor:
        texts.extend(given)
        return torch.full((len(images),), 0.3)

    def vqa(images: torch.Tensor, phrases: Sequence[Sequence[str]]) -> torch.Tensor:
        return torch.tensor([0.5 / len(p) for p in phrases])

    score = Compbench(prompts, NounPhrases(str(reader)), vqa, clip, detector)
    every = [prompt for file in files for prompt in file.read_text().splitlines()] * 2
    outputs = score(torch.zeros(len(every), 3, 8, 8, dtype=torch.uint8), every)
    assert {name: values.isnan().sum().item() for name, values in outputs.items()} == {
        **dict.fromkeys(("color", "shape", "texture", "spatial", "non_spatial"), 14),
        "complex": 10,
    }
    place = 0.25 * 0.8 * 2 + 0.5
    complexes = [(0.25 + place) / 2, (0.25 + 0.3) / 2, (0.25 + place + 0.3) / 3]
    scores = compbench_scores(outputs)
    expected = {"color": 0.5, "shape": 0.5, "texture": 0.5, "spatial": place, "non_spatial": 0.3}
    expected["complex"] = sum(complexes) / 3
    assert scores == pytest.approx({**expected, "average": sum(expected.values()) / 6})
    assert set(texts) == {"a girl with a bag", "a cat near a sofa", "a bag in a coat", "a dress near a hat"}
    assert ["cat", "sofa"] in detector.asked and all(len(names) == 2 for names in detector.asked)
    few = {name: values for name, values in outputs.items() if name != "shape"}
    assert "average" not in compbench_scores(few)


def test_files_say_their_category(tmp_path: Path, files: list[Path]) -> None:
    assert [category_of(Path(f"{x}.txt")) for x in ("color_val_seen", "non_spatial", "complex_val")] == [
        *("color", "non_spatial", "complex")
    ]
    for name in ("3d_spatial_val.txt", "colors.txt", "metadata.csv"):
        with pytest.raises(RcdeployError, match="takes the category of prompts from their file's name"):
            category_of(Path(name))
    (tmp_path / "complex_val_action.txt").unlink()
    with pytest.raises(RcdeployError, match="no complex_val_action.txt beside it"):
        CompbenchPrompts.read(files)


def test_a_score_file_names_the_networks(tmp_path: Path, files: list[Path]) -> None:
    names = ", ".join(f'"{file.name}"' for file in files[3:5])
    (tmp_path / "score.toml").write_text(
        f'captions = [{names}]\ncount = 2\nrepeat = 3\nmetrics = ["compbench"]\ndetector = "google/owlv2"\n'
    )
    spec = read_score(tmp_path / "score.toml").evaluation_spec()
    assert spec.repeat == 3 and spec.parts_of("compbench") == ["detector", "clip"]
    assert spec.detector == Path("google/owlv2"), "a name on the hub stays as it is"
    with pytest.raises(RcdeployError, match="compbench needs a CLIP model"):
        spec.selected_metrics()


@pytest.fixture
def owl(tmp_path: Path) -> Path:
    return save_owl(tmp_path / "owl")


# rcdeploy evaluate


def test_table_d_in_one_command(tiny_teacher: Path, files: list[Path], reader: Path, owl: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blip = saved(tmp_path / "blip", BlipForQuestionAnswering(small()))
    clip = save_clip(tmp_path / "clip")
    options = ["--metrics", "compbench", "--noun-phrases", reader, "--count", 0, "--repeat", 2, "--out", "set"]
    prompts = [word for file in files for word in ("--prompts", file)]
    record = evaluate(tiny_teacher, *prompts, *options, "--vqa", blip, "--clip", clip, "--detector", owl)
    names = ["color", "shape", "texture", "spatial", "non_spatial", "complex", "average"]
    assert list(record["scores"]["all"]) == [f"compbench.{name}" for name in names]
    assert record["counts"] == {"all": 16}
    assert {"vqa", "clip", "detector", "noun_phrases"} == set(record["weights"]["compbench"])
    assert _networks(record) == ["compbench, vqa: blip", "compbench, detector: owl", "compbench, clip: clip"]
    spatial = files[3]
    alone = evaluate(tiny_teacher, "--prompts", spatial, *options[:-1], "alone", "--detector", owl)
    assert list(alone["scores"]["all"]) == ["compbench.spatial"]


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("spatial_val.txt", [], "compbench needs a zero-shot detector: --detector"),
        ("complex_val.txt", ["--vqa", "reader", "--detector", "reader"], "compbench needs a CLIP model"),
        ("spatial_val.txt", ["--detector", "gone"], "--detector gone: no such file or folder"),
        ("spatial_val.txt", ["--detector", "no/owl"], "no/owl is not a local folder and cannot be fetched"),
        ("spatial_val.txt", ["--detector", "reader"], "reader holds no zero-shot detector"),
        ("list.txt", ["--detector", "reader"], "category of prompts from their file's name, and list.txt has none"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_sampled(
    tiny_teacher: Path, files: list[Path], reader: Path, tmp_path: Path, file: str, arguments: list[str], message: str
) -> None:
    write(tmp_path, list="a cat near a sofa")
    with pytest.raises(RcdeployError, match=message):
        evaluate(tiny_teacher, "--prompts", file, "--metrics", "compbench", "--noun-phrases", reader, *arguments)
    assert not list(tmp_path.rglob("pictures-*"))


def test_it_is_computed_only_if_it_is_named(tiny_teacher: Path, files: list[Path], tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    record = evaluate(tiny_teacher, "--prompts", files[4], "--clip", clip)
    assert list(record["scores"]["all"]) == ["clip"]
    assert json.loads((Path(record["folder"]) / "scores.json").read_text())["weights"].keys() == {"clip"}
