"""Table 2's split: captions with the ids of their images, and COCO's annotations, read an entry at a time."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from evaluation import evaluate

from rcdeploy.evaluate import coco
from rcdeploy.evaluate.prompt_choice import choose_and_split, choose_prompts
from rcdeploy.evaluate.spec import EvaluationSpec
from rcdeploy_runtime.errors import RcdeployError

CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 17, "name": "cat", "supercategory": "animal"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
]
# image 3 has no annotation at all; 391895 shows a person and a dog
ANNOTATIONS = [(42, 17), (42, 17), (5, 1), (391895, 1), (391895, 18)]
CAPTIONS = [(5, "a man  on a bench"), (42, "a cat"), (5, "someone sits"), (391895, "a walk"), (3, "an empty road")]
EXPECTED = [("a man on a bench", False), ("a cat", True), ("a walk", True), ("an empty road", False)]
SPLIT = "coco-animals:instances.json"


def instances(**changes: Any) -> dict[str, Any]:
    return {
        "info": {"year": 2014, "url": "x"},
        "images": [{"id": i, "file_name": f"COCO_val2014_{i:012}.jpg"} for i in (42, 5, 391895, 3)],
        "licenses": [],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "segmentation": [[1.5, 2.25]], "iscrowd": 0}
            for n, (i, c) in enumerate(ANNOTATIONS)
        ],
        "categories": CATEGORIES,
        **changes,
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """instances.json, the captions in every form, and files that cannot be used."""
    captions = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(CAPTIONS)]
    first = dict(reversed(CAPTIONS))
    rows = [(i, first[i]) for i in (5, 42, 391895, 3)]
    texts = {
        "instances.json": json.dumps(instances()),
        "captions.json": json.dumps({"info": {}, "annotations": captions}, indent=1),
        "metadata.csv": "file_name,text\n" + "".join(f"COCO_val2014_{i:012}.jpg,{text}\n" for i, text in rows),
        "ids.tsv": "caption\timage_id\n" + "".join(f"{text}\t{i}\n" for i, text in rows),
        "plain.txt": "a cat\na road\n",
        "no_ids.csv": "text,url\na cat,x\n",
        "other_names.csv": "file_name,text\ncat.jpg,a cat\n",
        "foreign.csv": "image_id,text\n5,a man\n6,a cat\n",
        "cut.json": json.dumps(instances())[:-150],
        "no_animals.json": json.dumps(instances(categories=CATEGORIES[:1])),
        "no_images.json": json.dumps(instances(images=[])),
        "captions_only.json": json.dumps({"annotations": [{"image_id": 5, "caption": "a"}]}),
        "list.json": "[1, 2]",
        "odd_id.json": json.dumps(instances(images=[{"id": "x"}])),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def spec(*prompts: str, **settings: Any) -> EvaluationSpec:
    return EvaluationSpec(prompt_files=tuple(map(Path, prompts)), count=0).replace(**settings)


@pytest.mark.parametrize("prompts", ["captions.json", "metadata.csv", "ids.tsv"])
def test_captions_are_split_by_the_annotations_of_their_images(files: Path, prompts: str) -> None:
    chosen, halves = choose_and_split(spec(prompts), SPLIT)
    assert halves is not None and list(zip(chosen, halves, strict=True)) == EXPECTED
    assert choose_prompts(spec(prompts)) == chosen, "a split changes no image"
    assert choose_and_split(spec(prompts), None) == (chosen, None)


def test_sampled_filtered_and_repeated_captions_keep_their_images(files: Path) -> None:
    settings: dict[str, Any] = {"count": 2, "repeat": 2, "exclude": ("road",), "seed": 3}
    chosen, halves = choose_and_split(spec("captions.json", **settings), SPLIT)
    assert chosen == choose_prompts(spec("captions.json", **settings)) and len(chosen) == 4
    assert halves == [dict(EXPECTED)[caption] for caption in chosen]


@pytest.mark.parametrize(
    ("prompts", "annotations", "message"),
    [
        ("plain.txt", "instances.json", "has no ids of images"),
        ("no_ids.csv", "instances.json", "neither a column image_id nor file_name"),
        ("other_names.csv", "instances.json", "line 2: 'cat.jpg' names no image of COCO"),
        ("foreign.csv", "instances.json", "lacks 1 of the 2 images that the prompts belong to, the first is 6"),
        ("gone.csv", "instances.json", "gone.csv does not exist"),
        ("gone.json", "instances.json", "gone.json cannot be read"),
        ("ids.tsv", "gone.json", "gone.json cannot be read"),
        ("ids.tsv", "cut.json", "is no file of COCO's annotations"),
        ("ids.tsv", "plain.txt", "is no file of COCO's annotations"),
        ("ids.tsv", "list.json", "is no file of COCO's annotations"),
        ("ids.tsv", "odd_id.json", "is no file of COCO's annotations"),
        ("ids.tsv", "no_animals.json", "no category of supercategory 'animal'"),
        ("ids.tsv", "no_images.json", "it has no images"),
        ("ids.tsv", "captions.json", "an entry without 'category_id'"),
        ("instances.json", "instances.json", "an entry without 'caption'"),
        ("captions_only.json", "instances.json", "splits nothing: no prompt has an animal in its image"),
    ],
)
def test_what_cannot_be_split_is_refused(files: Path, prompts: str, annotations: str, message: str) -> None:
    with pytest.raises(RcdeployError, match=message) as caught:
        choose_and_split(spec(prompts), f"coco-animals:{annotations}")
    assert caught.value.fix or "exist" in message


@pytest.mark.parametrize("characters", [1, 2, 7, 100])
def test_entries_are_whole_wherever_the_window_ends(
    files: Path, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    data = instances(numbers=[12345, -1.5e3, True, None, "a\\u00e9\u00e9 ]"], empty=[], zero=0)
    (files / "all.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(coco, "CHARACTERS_PER_READ", characters)
    expected = [(key, entry) for key, value in data.items() if isinstance(value, list) for entry in value]
    assert list(coco.array_entries(files / "all.json")) == expected


def test_a_large_file_is_never_in_memory_at_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = [[float(n) for n in range(40)]]
    entries = [{"image_id": 42, "category_id": 17, "segmentation": outline}] * 4000
    (files / "large.json").write_text(json.dumps(instances(annotations=entries)))
    monkeypatch.setattr(coco, "CHARACTERS_PER_READ", 1 << 14)
    tracemalloc.start()
    try:
        assert coco.images_with_animals(files / "large.json") == ({42}, {42, 5, 391895, 3})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300_000 < (files / "large.json").stat().st_size / 3


def test_an_entry_without_an_end_is_refused_early(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "MAX_ENTRY_CHARACTERS", 1000)
    monkeypatch.setattr(coco, "CHARACTERS_PER_READ", 400)
    (files / "endless.json").write_text('{"images": ["' + "x" * 100_000)
    with pytest.raises(RcdeployError, match="no file of COCO's annotations"):
        list(coco.array_entries(files / "endless.json"))


def test_the_command_scores_the_parts_apart(files: Path, judged: Path) -> None:
    record = evaluate(judged, "--prompts", "captions.json", "--count", 0, "--split", SPLIT)
    assert record["counts"] == {"all": 4, "with": 2, "without": 2} and record["split"] == SPLIT
