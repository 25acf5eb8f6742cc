"""rcdeploy evaluate as a user meets it: images, scores, halves, files for other tools; FID and IS of few images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAIRED
from evaluation import FAST, evaluate, save_judge, shard_bytes
from PIL import Image
from safetensors.torch import load_file, save_file
from test_clip_score import clip  # noqa: F401
from test_scores import seeded_inception
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest


def test_a_teacher_is_sampled_scored_and_recorded(judged: Path, captions: Path) -> None:
    arguments = (judged, "--prompts", captions, "--count", 18, "--shard-size", 8, "--batch-size", 4)
    record = evaluate(*arguments)
    folder = Path(record["folder"])
    assert folder.parent == Path("evaluations") and folder.name.startswith("tiny-")
    assert json.loads((folder / "scores.json").read_text()) == record
    scores = record["scores"]["all"]
    assert set(scores) == {f"judge.{n}" for n in ("item", "colour", "all", "inception_score", "frechet_distance")}
    assert record["counts"] == {"all": 18} and record["seconds"]["pictures_drawn"] == 18
    assert record["weights"]["judge_reference"]["count"] == 40 and len(record["weights"]["judge"]["sha256"]) == 64
    assert record["model"]["digest"] == LatentDiffusionModel(str(judged)).revision
    prompts = (folder / "prompts.txt").read_text().splitlines()
    assert len(prompts) == 18 and set(prompts) < set(PAIRED)
    assert Manifest.read(folder, "evaluation").facts["identity"]["guidance_scale"] == 7.5
    with Image.open(folder / "pictures.png") as grid:
        assert grid.height == 3 * (50 + 132), "18 images in three rows, each with its prompts above"

    stored = [load_file(p)["pictures"] for p in sorted(folder.glob("pictures-*.safetensors"))]
    assert [tuple(k.shape) for k in stored] == [(8, 3, 64, 64), (8, 3, 64, 64), (2, 3, 64, 64)]
    assert all(k.dtype == torch.uint8 for k in stored)
    model = LatentDiffusionModel(str(judged))
    expected = sample_images(model, [prompts[9]], runtime_noise(model, [9], (64, 64)), num_inference_steps=2)
    assert (torch.cat(stored)[9] / 255 - expected[0]).abs().max() < 1.6 / 255, "image 9 is a function of (seed, 9)"

    before = shard_bytes(folder)
    again = evaluate(*arguments, "--shard-size", 3)  # a folder that was begun keeps its shards
    assert again["seconds"]["pictures_drawn"] == 0
    assert again["scores"] == record["scores"] and shard_bytes(folder) == before

    other = evaluate(*arguments, "--seed", 1)
    assert other["folder"] != record["folder"] and other["seconds"]["pictures_drawn"] == 18


def test_halves_and_the_printed_table(judged: Path, captions: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# seen\nshoe\nba[gt]\n")
    arguments = ["evaluate", str(judged), "--prompts", str(captions), "--split", "words.txt", *FAST]
    record = evaluate(judged, "--prompts", captions, "--split", "words.txt")
    assert record["counts"] == {"all": 20, "with": 8, "without": 12}
    item = {part: scores["judge.item"] for part, scores in record["scores"].items()}
    assert 20 * item["all"] == pytest.approx(8 * item["with"] + 12 * item["without"], abs=1e-3)
    assert "judge.frechet_distance" not in record["scores"]["with"], "8 images are too few for 16 features"
    page = CliRunner().invoke(app, arguments)
    assert page.exit_code == 0
    assert "judge.item" in page.stdout and "higher" in page.stdout and "lower" in page.stdout
    assert "judge.frechet_distance is omitted for with, without: it needs more than 16" in page.stderr
    assert "(8 with, 12 without)" in " ".join(page.stdout.split()) and "scores.json" in page.stdout


def test_prompts_with_animals(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("two dogs\na red shoe\na flock of geese\na polar bear on ice\na catalogue\n")
    record = evaluate(judged, "--prompts", "p.txt", "--split", "animals", "--out", "set")
    assert record["counts"] == {"all": 5, "with": 3, "without": 2}
    assert Path("set/prompts.txt").read_text().splitlines()[1] == "a red shoe", "all of them: in the file's order"


def test_a_package_samples_from_the_same_noise_as_its_source(package: Path, small_model: Path, captions: Path) -> None:
    images = []
    shutil.copytree(small_model, "model")
    save_judge(Path("judge"))
    for subject in (package, "model"):
        record = evaluate(subject, "--prompts", captions, "--count", 3, "--judge", "judge", "--seed", 5)
        (file,) = Path(record["folder"]).glob("pictures-*.safetensors")
        images.append(load_file(file)["pictures"].float())
    difference = (images[0] - images[1]).abs()
    assert difference.mean() < 1 and images[0].std() > 1
    assert json.loads(Path(record["folder"], "scores.json").read_text())["model"]["kind"] == "pipeline"


def test_files_for_other_tools_and_smaller_images(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('file_name,text\n1.jpg,a red shoe\n2.jpg,"a bag, half/half"\n3.jpg,a cat\n')
    record = evaluate(
        judged, "--prompts", "p.csv", "--exclude", "cat", "--resize", 32, "--write-pictures", "out", "--out", "here"
    )
    assert sorted(p.name for p in Path("out").iterdir()) == ["a bag, half half_000001.png", "a red shoe_000000.png"]
    stored = load_file("here/pictures-00000.safetensors")["pictures"]
    assert stored.shape == (2, 3, 32, 32) and record["identity"]["drawn_size"] == [64, 64]
    with Image.open("out/a red shoe_000000.png") as image:
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), stored[0].numpy())
    full = evaluate(judged, "--prompts", "p.csv", "--exclude", "cat", "--out", "full")
    whole = Image.fromarray(load_file("full/pictures-00000.safetensors")["pictures"][0].permute(1, 2, 0).numpy())
    smaller = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(stored[0].numpy(), smaller)
    assert full["folder"] == "full"


def test_fid_and_is_of_a_few_images(judged: Path, captions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights: the numbers are tested in test_scores.py."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("user").resolve()))
    save_file(seeded_inception().state_dict(), "inception.safetensors")
    common = [judged, "--prompts", captions, "--count", 4, "--inception", "inception.safetensors"]
    with pytest.raises(RcdeployError, match="fid needs a reference"):
        evaluate(*common, "--metrics", "fid")
    first = evaluate(*common, "--metrics", "is", "--write-pictures", "real")
    assert set(first["scores"]["all"]) == {"is", "is_deviation"}
    with pytest.raises(RcdeployError, match=r"4 images are too few for an FID of 2,048 features") as caught:
        evaluate(*common, "--metrics", "fid,is", "--reference", "real")
    assert "2,049" in str(caught.value.fix)
    same = evaluate(*common, "--metrics", "fid,is", "--reference", "real", "--allow-few")
    assert same["seconds"]["pictures_drawn"] == 0
    assert same["scores"]["all"]["fid"] == pytest.approx(0, abs=1e-3), "the same images"
    assert same["scores"]["all"]["is"] == first["scores"]["all"]["is"]
    assert same["weights"]["reference"]["count"] == 4
    other = evaluate(*common, "--reference", "real", "--allow-few", "--seed", 3, "--metrics", "fid")
    assert other["scores"]["all"]["fid"] > 1e-3
    everything = evaluate(*common, "--reference", "real", "--allow-few")
    assert {"fid", "is", "judge.item"} <= set(everything["scores"]["all"]), "all that can be computed"


def test_clip_scores(judged: Path, captions: Path, clip: Path) -> None:  # noqa: F811
    record = evaluate(judged, "--prompts", captions, "--count", 3, "--clip", clip, "--metrics", "clip,judge")
    assert -1 <= record["scores"]["all"]["clip"] <= 1 and "judge.item" in record["scores"]["all"]
