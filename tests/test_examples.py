"""The programs that users copy, run as they would run them."""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from rcdeploy import cache_latents
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.loop import distill
from rcdeploy.judge_files import judge_digest
from rcdeploy.plots import CAPTION_HEIGHT, GAP, LABEL_WIDTH
from rcdeploy.progress import no_log, no_progress
from rcdeploy.prompts.pool import PromptPool
from rcdeploy.prompts.recipe_pool import paired_sources
from rcdeploy.real_images import captioned_images
from rcdeploy.recipe_file import load_recipe
from rcdeploy.student.spec import fitting_students

EXAMPLES = Path(__file__).parent.parent / "examples"
EMBED = EXAMPLES / "embed"
FASHION, FASHION_XL = EXAMPLES / "teachers/fashion", EXAMPLES / "teachers/fashion_xl"


def call(name: str, *arguments: str, folder: Path = EMBED) -> str:
    done = subprocess.run([sys.executable, str(folder / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_draw(package: Path, tmp_path: Path) -> None:
    assert "seed 7" in call("draw.py", str(package), "a red bag")
    assert Image.open(tmp_path / "out.png").size == (64, 64)


def test_studio(package: Path, tmp_path: Path) -> None:
    call("studio.py", str(package), "a red bag", "a blue bag", "a coat", "--out", "images")
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["0.png", "1.png", "2.png"]


@pytest.mark.slow
def test_figure_3(tmp_path: Path) -> None:
    call("figure_3.py", "--timesteps", "100", "800", "--steps", "4", "--out", "figure.png", folder=EXAMPLES)
    sheet = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"), np.float32)
    step = 88 + GAP
    assert sheet.shape == (
        CAPTION_HEIGHT + 4 * step,
        LABEL_WIDTH + 4 * step,
        3,
    )  # columns: x_0, two timesteps, from noise
    images = sheet[CAPTION_HEIGHT:, LABEL_WIDTH:].reshape(4, step, 4, step, 3).swapaxes(1, 2)
    difference = np.abs(images - images[:, :1]).mean((0, 2, 3, 4))
    assert difference[1] < difference[2]  # from t = 100 it stays what it was, from t = 800 it does not


@pytest.mark.slow
def test_figure_5(tmp_path: Path) -> None:
    call("figure_5.py", "--count", "8", "--out", "figure.png", folder=EXAMPLES)
    result = json.loads((tmp_path / "figure.json").read_text())
    assert result["told_apart"][0] == 1
    noise = result["difference_predicted_noise"]
    x_0 = result["difference_predicted_x_0"]
    assert len(noise) == len(x_0) == len(result["timesteps"])
    assert noise[0] > noise[-1]
    assert x_0[0] < x_0[-1]


def test_figure_5_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import figure_5_toy

    monkeypatch.setattr(sys, "argv", ["figure_5_toy.py", "--count", "50", "--out", "figure.png"])
    figure_5_toy.main()
    overlap = json.loads((tmp_path / "figure.json").read_text())["overlap"]
    assert overlap[0] < 0.05 and overlap[-1] > 0.9, "apart as x_0, the same as noise"
    assert Image.open(tmp_path / "figure.png").width > 500


def test_figure_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(EXAMPLES)
    import figure_2

    few = ["--teacher-steps", "2", "--steps", "2", "--cached", "9", "--scored", "1", "--sampling-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["figure_2.py", *few, "--excluded", "7", "--out", "figure.png"])
    figure_2.main()
    result = json.loads((tmp_path / "figure.json").read_text())
    assert set(result["right_percent"]) == {"teacher", "student without", "student with"} and result["excluded"] == 7
    sheet = Image.open(tmp_path / "figure.png")
    assert sheet.size == (LABEL_WIDTH + 13 * (72 + GAP), CAPTION_HEIGHT + 3 * (72 + GAP))


def test_table_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paired prompts are those of the cache; real images from a tiny dataset."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import table_data

    recipe = load_recipe(EXAMPLES.parent / "recipes/tables/fashion.toml", ["prompts.paired_count=40"])
    cache_latents.prepare(recipe, LatentDiffusionModel(recipe.teacher.path), paired_sources(recipe))
    (cache,) = tmp_path.glob("caches/*")
    assert (cache / "prompts.txt").read_text().splitlines() == table_data.paired_texts(recipe)
    table_data.pools(recipe, tmp_path / "out")
    sizes = {
        name: len(PromptPool.open(tmp_path / f"out/pool_{name}_0")) for name in ("paired", "eighth", "half", "unseen")
    }
    assert sizes["paired"] == 40
    assert sizes["unseen"] == 40 + 3 * 1680
    assert sizes["paired"] < sizes["eighth"] < sizes["half"] < 13_440
    table_data.templates(tmp_path / "templates.txt")
    texts = (tmp_path / "templates.txt").read_text().splitlines()
    assert not set(texts) & set(table_data.all_captions(recipe))

    rng = np.random.default_rng(0)
    n = 24
    for name, header, values in (
        ("images-idx3-ubyte", 16, rng.integers(0, 256, (n, 28, 28), np.uint8)),
        ("labels-idx1-ubyte", 8, np.resize(np.array([0, 1, 3, 4, 5, 7, 8, 9], np.uint8), n)),
    ):
        (tmp_path / f"train-{name}.gz").write_bytes(gzip.compress(bytes(header) + values.tobytes()))
    table_data.write_real_images(tmp_path, tmp_path / "images", 10)
    pairs = captioned_images(tmp_path / "images")
    assert len(pairs) == 10
    assert all(Image.open(file).size == (64, 64) for file, _ in pairs)
    assert {text for _, text in pairs} <= set(table_data.all_captions(recipe))


def test_the_sdxl_teacher_opens_in_diffusers() -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(FASHION_XL, add_watermarker=False, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.force_zeros_for_empty_prompt
    prompt = "a photo of a red boot on a white background"
    assert pipeline(prompt, num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    for name in ("vae", "text_encoder"):
        for file in (FASHION / name).iterdir():
            assert file.read_bytes() == (FASHION_XL / name / file.name).read_bytes(), file
    assert judge_digest(FASHION_XL / "judge") == judge_digest(FASHION / "judge")
    size = sum(file.stat().st_size for file in FASHION_XL.rglob("*") if file.is_file())
    assert size < 12e6


def test_koala_students_fit_the_sdxl_teacher(tmp_path: Path) -> None:
    config = LatentDiffusionModel(str(FASHION_XL)).unet_config
    assert {"koala-700m", "koala-1b"} <= set(fitting_students(config))
    small = ("prompts.paired_count=2", "cache.num_inference_steps=2", "train.max_steps=1", "train.global_batch_size=2")
    recipe = load_recipe(EXAMPLES.parent / "recipes/fashion_xl_koala.toml", [*small, "evaluate.every=0"])
    distill(recipe, tmp_path / "run", no_progress, no_log)
    (line,) = (json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert 0 < line["output"] < 1
    assert 0 < line["feature"] < 1e3


@pytest.mark.slow
def test_the_sdxl_teachers_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import train_xl

    fashion = tmp_path / "fashion"
    fashion.mkdir()
    for path in FASHION.iterdir():
        (fashion / path.name).symlink_to(path)
    captions = gzip.decompress((FASHION / "captions_train.txt.gz").read_bytes()).splitlines()[:8]
    (fashion / "captions_train.txt.gz").unlink()
    (fashion / "captions_train.txt.gz").write_bytes(gzip.compress(b"\n".join(captions)))
    args = argparse.Namespace(
        fashion=fashion,
        work=tmp_path / "work",
        out=tmp_path / "xl",
        seed=0,
        pictures=2,
        guidance=4.0,
        batch=2,
        lr=1e-3,
        shallow_steps=3,
        unet_steps=1,
        checkpoint_every=2,
    )
    monkeypatch.setattr(train_xl, "describe", lambda _args: None)  # its pictures take seconds
    train_xl.make_xl_teacher(args)
    weights = tmp_path / "xl/unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for lost in ("work/shallow/checkpoints/step-00000003", "work/unet", "xl"):
        shutil.rmtree(tmp_path / lost)
    train_xl.make_xl_teacher(args)
    assert weights.read_bytes() == whole
    model = LatentDiffusionModel(str(tmp_path / "xl"))
    model.load("unet", "text_encoder", "text_encoder_2", "vae")
    assert model.unet_config["transformer_layers_per_block"] == [1, 2, 7]
