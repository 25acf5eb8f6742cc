"""CLIP score: transformers' own numbers for the same pixels, whatever the size of the images."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tokenizer
from evaluation import save_clip
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from rcdeploy.evaluate.clip_score import ClipScore
from rcdeploy_runtime.errors import RcdeployError

PROMPTS = ["a red shirt", "a blue bag", "two shoes"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return save_clip(tmp_path / "clip")


def test_it_is_the_models_own_similarity(clip: Path) -> None:
    score = ClipScore(clip)
    images = torch.rand(3, 3, 32, 32)
    similarities = score(images, PROMPTS, batch_size=2)
    model, words = CLIPModel.from_pretrained(clip).eval(), tokenizer()
    tokens = words(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, pixel_values=(images - score.mean) / score.std)
    expected = output.logits_per_image.diagonal() / model.logit_scale.exp()
    assert torch.allclose(similarities, expected, atol=1e-6)
    assert similarities.std() > 1e-4  # not one number for all


def test_images_are_made_square_as_pillow_makes_them(clip: Path) -> None:
    score = ClipScore(clip)
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((128, 96), Image.Resampling.BICUBIC)
    resized = smooth.resize((43, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
    pair = [torch.from_numpy(np.array(x)).movedim(-1, 0)[None] / 255 for x in (smooth, resized)]
    assert torch.allclose(score(pair[0], PROMPTS[:1]), score(pair[1], PROMPTS[:1]), atol=2e-3)


def test_a_model_built_as_the_papers(tmp_path: Path) -> None:
    """ViT-g/14 as OpenCLIP trained it: exact GELU, a vision tower wider than the text tower; prompts of any length."""
    words = tokenizer()
    words.model_max_length = int(1e30)  # as in folders that do not state it
    text = {"hidden_size": 16, "vocab_size": len(words), "max_position_embeddings": 16}
    vision = {"hidden_size": 24, "image_size": 28, "patch_size": 14, "intermediate_size": 100}
    for tower in (text, vision):
        tower |= {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(tmp_path / "clip")
    words.save_pretrained(tmp_path / "clip")
    similarities = ClipScore(tmp_path / "clip")(torch.rand(2, 3, 64, 64), ["a red shirt", "a blue bag " * 40])
    assert similarities.shape == (2,) and similarities.isfinite().all() and (similarities.abs() <= 1).all()


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="holds no CLIP model"):
        ClipScore(tmp_path)


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    (clip / "evil.py").write_text("raise SystemExit('run')\nclass Evil: ...\n")
    config = json.loads((clip / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (clip / "tokenizer_config.json").write_text(json.dumps(config))
    with suppress(RcdeployError):  # a tokenizer of another class that fits its files may do
        ClipScore(clip)
    assert "evil" not in sys.modules
