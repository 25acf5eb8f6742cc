"""rcdeploy evaluate as a user meets it: images, scores, halves, files for other tools; FID and IS of few images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
from rcdeploy.evaluate import image_source
from rcdeploy.evaluate.spec import EvaluationSpec
from rcdeploy.judge_files import judge_digest
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


@pytest.mark.parametrize(
    ("count", "batch_size", "shard_size", "expected"),
    [
        (100, 16, None, 16),  # 7 files: a batch each
        (1000, 16, None, 64),  # 16 files
        (30_000, 16, None, 256),
        (3, 1, None, 1),
        (40, 1, None, 3),
        (100, 16, 50, 50),
    ],
)
def test_files_are_small_enough_to_lose_little(
    count: int, batch_size: int, shard_size: int | None, expected: int
) -> None:
    spec = EvaluationSpec(batch_size=batch_size, shard_size=shard_size)
    assert spec.images_per_shard(count) == expected


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    judged: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", str(judged), "--prompts", str(captions), "--batch-size", "4", "--out", "set", *FAST]
    original = image_source.sample_images
    calls = iter(range(100))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(image_source, "sample_images", interrupted)
    stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130
    assert "12 of 20 images are kept in set; the same command goes on" in stopped.stderr
    assert len(shard_bytes("set", "pictures")) == 3
    record = evaluate(judged, "--prompts", captions, "--batch-size", 4, "--out", "set")
    assert record["seconds"]["pictures_drawn"] == 8


def test_a_package_carries_its_captions_and_names_its_judge(
    package: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "package"
    shutil.copytree(package, copy)
    (copy / "captions.txt").write_text("a red shoe\na blue bag\n")
    manifest = Manifest.read(copy, "package")
    digest = judge_digest(judged / "judge")
    manifest.facts |= {"captions": "captions.txt", "judge": {"teacher": "tiny", "folder": "judge", "digest": digest}}
    manifest.add_file(copy, "captions.txt")
    manifest.write(copy)
    with pytest.raises(RcdeployError, match="no metric can be computed"):
        evaluate(copy)
    shutil.copytree(judged, "examples/teachers/tiny")
    record = evaluate(copy)
    assert record["counts"] == {"all": 2} and "judge.item" in record["scores"]["all"]
    assert record["weights"]["judge"]["path"] == "examples/teachers/tiny/judge"
    (tmp_path / "examples/teachers/tiny/judge/config.json").write_text(json.dumps({"attributes": {}, "width": 4}))
    with pytest.raises(RcdeployError, match="no metric can be computed"):
        evaluate(copy)


def test_bad_arguments_fail_before_torch_is_imported(judged: Path, captions: Path) -> None:
    code = (
        "import sys\n"
        "from rcdeploy.cli.main import app\n"
        "from rcdeploy_runtime.errors import RcdeployError\n"
        "try:\n"
        f"    app(['evaluate', {str(judged)!r}, '--prompts', {str(captions)!r}, *sys.argv[1:]])\n"
        "except RcdeployError:\n"
        "    print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])\n"
    )
    for arguments in (["--count", "21"], ["--metrics", "vqa"], ["--resize", "128"], ["--reference", "gone"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", arguments
