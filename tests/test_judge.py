"""The judge, its labels of captions, and the images of the embedded teacher's data."""

import sys
from pathlib import Path

import torch

from rcdeploy.evaluate.judge import Judge

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
