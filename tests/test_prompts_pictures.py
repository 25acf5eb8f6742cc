"""The last filter for unseen concepts: the captions that BLIP (here tiny, with random weights) makes of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration
from typer.testing import CliRunner

from rcdeploy import cache_latents, captioned_images
from rcdeploy.captioned_images import images_of_captions
from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.prompts.captioner import Captioner, caption_images
from rcdeploy.prompts.journal import Journal
from rcdeploy.recipe import Recipe
from rcdeploy_runtime.errors import RcdeployError

run = CliRunner().invoke
WORDS = ["bus", "tree", "river", "tower", "bridge", "lamp", "chair", "stone", "road", "cloud"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip") / "tiny"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**small, **ends, "vocab_size": len(vocabulary), "encoder_hidden_size": 16, "projection_dim": 16}
    vision = {**small, "image_size": 16, "patch_size": 8, "projection_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = BlipForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)  # large: pictures must matter to what it says
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of different sizes and colours with their captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows, captions = ["file_name,text"], {"a red thing": "red", "a blue thing": "blue", "a thing of wolves": "green"}
    for i, (caption, colour) in enumerate(captions.items()):
        Image.new("RGB", (32, 20 + 8 * i), colour).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{caption}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


def captions_of(captioner: Captioner, source: Path, prompts: list[str], journal: Journal) -> dict[str, str]:
    return caption_images(captioner, source, lambda missing: images_of_captions(source, missing), prompts, journal)


def test_image_captions_are_journalled(
    blip: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner, prompts = Captioner(blip), ["a red thing", "a blue thing", "no image"]
    with Journal(tmp_path / "j.jsonl") as journal:
        captions = captions_of(captioner, pictures, prompts, journal)
    assert set(captions) == {"a red thing", "a blue thing"}
    assert len(set(captions.values())) == 2 and all(
        set(text.split()) <= {*WORDS, "[DEC]"} for text in captions.values()
    )
    alone = captioner(torch.from_numpy(np.asarray(Image.open(pictures / "1.png")).copy()).permute(2, 0, 1)[None] / 255)
    assert alone == [captions["a blue thing"]]
    monkeypatch.setattr(Captioner, "__call__", None)  # no image is captioned twice
    with Journal(tmp_path / "j.jsonl") as journal:
        assert captions_of(captioner, pictures, prompts, journal) == captions


def test_unseen_drops_captions_by_their_images(blip: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red thing\na blue thing\na thing of wolves\nno image\n")
    with Journal(tmp_path / "other.jsonl") as journal:
        captions = captions_of(Captioner(blip), pictures, ["a red thing", "a blue thing"], journal)
    words_of = {caption: set(text.split()) for caption, text in captions.items()}
    word = min((words_of["a red thing"] ^ words_of["a blue thing"]) & set(WORDS))  # in one of the captions
    (tmp_path / "words.txt").write_text(f"wolf\n{word}\n")
    line = ["prompts", "unseen", "captions.txt", "--out", "split", "--words", "words.txt", "--json"]
    line += ["--captioner", str(blip), "--pictures", str(pictures)]
    counts = json.loads(run(app, line).stdout)[0]
    hit = [caption for caption, words in words_of.items() if word in words]
    assert len(hit) == 1 and counts == {"captions": 4, "kept": 2, "dropped": 2, "picture keyword": 1, "keyword": 1}
    rows = [json.loads(row) for row in (tmp_path / "split/dropped.jsonl").read_text().splitlines()]
    by_image = [row for row in rows if row["stage"] == "picture keyword"]
    assert [(r["caption"], r["reason"], r["seen"]) for r in by_image] == [(c, word, captions[c]) for c in hit]


def test_latents_of_a_cache_are_decoded_and_captioned(
    blip: Path, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe()
    teacher = LatentDiffusionModel(recipe.teacher.path)
    cache = cache_latents.make_latent_cache(recipe, teacher)
    prompts = [cache.prompts[1], cache.prompts[7], "none of its prompts"]
    decoded: list[Any] = []
    monkeypatch.setattr(captioned_images, "BATCH_SIZE", 1)
    monkeypatch.setattr(Captioner, "__call__", lambda _, images: decoded.append(images) or ["a bus"] * len(images))
    with Journal(tmp_path / "j.jsonl") as journal:
        assert captions_of(Captioner(blip), cache.folder, prompts, journal) == {
            prompts[0]: "a bus",
            prompts[1]: "a bus",
        }
    assert torch.equal(torch.cat(decoded), torch.cat([teacher.decode(cache.latents([row])) for row in (1, 7)]))


def test_a_folder_without_a_blip_model(tiny_teacher: Path, tmp_path: Path) -> None:
    for folder in (tiny_teacher / "text_encoder", tmp_path):
        with pytest.raises(RcdeployError, match="holds no BLIP captioning model"):
            Captioner(folder)
