"""The judge, its labels of captions, and the images of the embedded teacher's data."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rcdeploy.evaluate.judge import Judge
from rcdeploy.prompts import patterns
from rcdeploy_runtime.errors import RcdeployError

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from fashion import ATTRIBUTES, COLOURS, ITEMS, draw, scenes


def test_labels_of_every_caption_are_those_of_its_scene() -> None:
    judge = Judge(ATTRIBUTES, width=4)
    captions = 0
    for scene in scenes():
        for caption in scene.captions():
            captions += 1
            expected = {"item": scene.item, "colour": scene.colour, "background": scene.background}
            assert judge.labels(caption) == expected, caption
    assert captions == 15_680
    assert len({c for s in scenes() for c in s.captions()}) == captions


def test_other_texts_have_no_labels() -> None:
    judge = Judge(ATTRIBUTES, width=4)
    assert judge.labels("a cat") == {}
    assert judge.labels("a red boots") == {}
    assert judge.labels("a t-shirt") == {"item": ITEMS.index("t-shirt")}


def test_a_judge_comes_back_from_disk(tmp_path: Path) -> None:
    judge = Judge(ATTRIBUTES, width=4).eval()
    judge.save(tmp_path / "judge")
    again = Judge.load(tmp_path / "judge")
    images = torch.rand(3, 3, 64, 64)
    for name, logits in judge(images).items():
        torch.testing.assert_close(again(images)[name], logits, atol=1e-2, rtol=1e-2)  # fp16 on disk
    assert again.features(images).shape == (3, 16)


def spoil(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def attribute(**changes: Any) -> dict[str, Any]:
    return {"attributes": {"item": ATTRIBUTES["item"] | changes}}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": 10**9}, "width"),
        ({"width": 0}, "width"),
        ({"width": True}, "width"),
        ({"width": 8}, "not the judge that its config.json describes"),
        ({"attributes": {}}, "attributes are not"),
        ({"attributes": ["item"]}, "attributes are not"),
        ({"attributes": {"a.b": ATTRIBUTES["item"]}}, "no identifier"),
        ({"attributes": {"item": 3}}, "labels are not a list"),
        (attribute(labels=[]), "labels are not 1 to"),
        (attribute(labels=["a", "a"]), "labels are not 1 to"),
        (attribute(labels=[str(i) for i in range(10_001)]), "labels are not 1 to"),
        (attribute(pattern="(boot"), "no regular expression"),
        (attribute(pattern="boot"), "has no group"),
        (attribute(pattern="(boot)" * 20_000), "at most 100,000 characters"),
        ({"attributes": {"item": ATTRIBUTES["item"]}}, "not the judge that its config.json describes"),
    ],
)
def test_a_config_that_describes_no_judge_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    Judge(ATTRIBUTES, width=4).save(tmp_path)
    spoil(tmp_path, **changes)
    with pytest.raises(RcdeployError, match=words):
        Judge.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"width": 1' + "0" * 5_000 + "}"])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    Judge(ATTRIBUTES, width=4).save(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RcdeployError, match="config.json"):
        Judge.load(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    Judge(ATTRIBUTES, width=4).save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RcdeployError, match=r"model\.safetensors"):
        Judge.load(tmp_path)


def test_a_pattern_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS_PER_CAPTION", 0.1)
    Judge(ATTRIBUTES, width=4).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["attributes"]["item"]["pattern"] = "((?:a+)+)b"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RcdeployError, match=r"takes more than 0\.1 s for the caption 'aaa"):
        Judge.load(tmp_path).label_tensors(["a boot", "a" * 60])


def test_a_match_that_is_no_label_names_nothing() -> None:
    assert Judge({"item": {"labels": ["boot"], "pattern": "(b..t)"}}, width=4).labels("a boat") == {}


def test_verdicts_compare_with_the_prompt() -> None:
    judge = Judge(ATTRIBUTES, width=4).eval()
    images = torch.rand(10, 3, 64, 64)
    predicted = judge(images)["item"].argmax(1)
    right = [f"a red {ITEMS[i]} on a blue background" for i in predicted]
    wrong = [f"a red {ITEMS[(i + 1) % len(ITEMS)]} on a blue background" for i in predicted]
    assert judge.verdicts(images, right)["item"].all()
    assert not judge.verdicts(images, wrong)["item"].any()
    assert not judge.verdicts(images, ["no item at all"] * 10)["item"].any()


def test_images_have_the_colours_of_their_scene() -> None:
    chosen = [s for s in scenes() if s.size == 2][:20]
    photo = torch.zeros(len(chosen), 1, 28, 28)
    photo[:, :, 6:22, 6:22] = 1
    images = draw(photo, chosen, torch.Generator().manual_seed(0))
    assert images.shape == (len(chosen), 3, 64, 64)
    palette = torch.tensor(list(COLOURS.values()))
    for image, scene in zip(images, chosen, strict=True):
        assert (palette - image[:, 32, 32]).square().sum(1).argmin() == scene.colour
        assert (palette - image[:, 1, 1]).square().sum(1).argmin() == scene.background
