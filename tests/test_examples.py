"""The programs that users copy, run as they would run them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcdeploy import cache_latents
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.plots import CAPTION_HEIGHT, GAP, LABEL_WIDTH
from rcdeploy.prompts.pool import PromptPool
from rcdeploy.prompts.recipe_pool import paired_sources
from rcdeploy.real_images import captioned_images
from rcdeploy.recipe_file import load_recipe

EXAMPLES = Path(__file__).parent.parent / "examples"
EMBED = EXAMPLES / "embed"


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
