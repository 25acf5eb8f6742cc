"""The judge, the captions it reads, and the pictures they belong to."""

import sys
from pathlib import Path

import torch

from rcdeploy.evaluate.judge import Judge

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from fashion import ATTRIBUTES, COLOURS, ITEMS, draw, scenes


def test_every_caption_says_what_its_scene_is() -> None:
    judge = Judge(ATTRIBUTES, width=4)
    captions = 0
    for scene in scenes():
        for caption in scene.captions():
            captions += 1
            wanted = {"item": scene.item, "colour": scene.colour, "background": scene.background}
            assert judge.wanted(caption) == wanted, caption
    assert captions == 15_680
    assert len({c for s in scenes() for c in s.captions()}) == captions


def test_other_texts_want_nothing() -> None:
    judge = Judge(ATTRIBUTES, width=4)
    assert judge.wanted("a cat") == {}
    assert judge.wanted("a red boots") == {}
    assert judge.wanted("a t-shirt") == {"item": ITEMS.index("t-shirt")}


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
    found = judge(images)["item"].argmax(1)
    right = [f"a red {ITEMS[i]} on a blue background" for i in found]
    wrong = [f"a red {ITEMS[(i + 1) % len(ITEMS)]} on a blue background" for i in found]
    assert judge.verdicts(images, right)["item"].all()
    assert not judge.verdicts(images, wrong)["item"].any()
    assert not judge.verdicts(images, ["no item at all"] * 10)["item"].any()


def test_pictures_have_the_colours_their_scene_names() -> None:
    chosen = [s for s in scenes() if s.size == 2][:20]
    photo = torch.zeros(len(chosen), 1, 28, 28)
    photo[:, :, 6:22, 6:22] = 1
    images = draw(photo, chosen, torch.Generator().manual_seed(0))
    assert images.shape == (len(chosen), 3, 64, 64)
    palette = torch.tensor(list(COLOURS.values()))
    for image, scene in zip(images, chosen, strict=True):
        assert (palette - image[:, 32, 32]).square().sum(1).argmin() == scene.colour
        assert (palette - image[:, 1, 1]).square().sum(1).argmin() == scene.background
