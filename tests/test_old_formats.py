"""Folders written by rcdeploy 0.1 (tests/fixtures/make_formats.py says how): today's code opens and resumes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import listing
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.report.run_data import read_run
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.text_to_image import TextToImage

FORMATS = Path(__file__).parent / "fixtures" / "formats_0_1"
TRIAL = Path("trials/recipe-6b566790")
"""a finished run of the recipe that run/ was interrupted in"""
EVALUATE = ["evaluate", str(TRIAL), "--prompts", "paired.txt", "--count", "6", "--judge", "teacher/judge"]
EVALUATE += ["--steps", "2", "--device", "cpu", "--out", "evaluation", "--json"]


@pytest.fixture(autouse=True)
def formats(tmp_path: Path) -> None:
    """A copy of the folders in the current one."""
    shutil.copytree(FORMATS, tmp_path, dirs_exist_ok=True)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds_per_step"} for entry in entries]


@pytest.mark.parametrize(
    ("folder", "kind", "files"),
    [
        ("pool", "prompt_pool", 2),
        ("cache", "latent_cache", 5),
        ("run", "run", 0),
        (str(TRIAL), "run", 10),
        ("evaluation", "evaluation", 0),
        ("package", "package", 14),
    ],
)
def test_manifests(folder: str, kind: str, files: int) -> None:
    manifest = Manifest.read(Path(folder), kind)
    assert manifest.schema_version == 1
    assert len(manifest.files) == files
    assert manifest.wrong_files(Path(folder)) == []


def test_prompt_pool() -> None:
    info = json.loads(run("prompts", "info", "pool", "--json"))
    assert (info["count"], info["dropped"]["duplicate"]) == (40, 0)
    assert info["first"][:2] == ["a red shirt", "a red shoe"]
    (used,) = (m["sha256"] for m in Manifest.read(TRIAL, "run").made_from if m["kind"] == "prompt_pool")
    assert info["digest"] == used


def test_latent_cache_is_complete_and_a_lost_shard_is_made_again() -> None:
    before = listing(Path("cache"))
    info = json.loads(run("cache", "recipe.toml", "--json"))
    (row,) = info if isinstance(info, list) else [info]
    assert (row["latents"], row["shards"], row["shape"]) == (8, 3, "4x8x8")
    assert listing(Path("cache")) == before

    shard = Path("cache/latents-00001.safetensors")
    shard.unlink()
    run("cache", "recipe.toml", "--quiet")
    made, stored = (load_file(folder / shard)["latents"].astype("float32") for folder in (Path(), FORMATS))
    assert np.allclose(made, stored, rtol=1e-2, atol=1e-3), "fp16, rounded"


def test_an_interrupted_run_ends_as_one_that_was_not() -> None:
    paths = ["teacher.path=teacher", "cache.folder=cache", 'prompts.paired=["paired.txt"]', 'prompts.pool=["pool"]']
    caches = listing(Path("cache"))
    before = Path("run/metrics.jsonl").read_text()
    run("distill", "recipe.toml", "--out", "run", "--quiet", *(x for p in paths for x in ("--set", p)))

    assert Path("run/metrics.jsonl").read_text().startswith(before)
    ends = [untimed(metrics(folder)) for folder in (Path("run"), TRIAL)]
    assert [entry["step"] for entry in ends[0]] == [3, 4, 6, 8, 8]
    for entry, stored in zip(*ends, strict=True):
        assert entry == pytest.approx(stored, rel=1e-3)
    for name in ("ema", "model"):
        file = f"checkpoints/step-00000008/{name}.safetensors"
        weights, stored_weights = load_file(Path("run") / file), load_file(TRIAL / file)
        assert list(weights) == list(stored_weights)
        for key, weight in weights.items():
            assert np.allclose(weight, stored_weights[key], rtol=1e-4, atol=1e-6), key
    assert listing(Path("cache")) == caches, "no latent was made anew"
    facts = Manifest.read(Path("run"), "run").facts
    assert facts["finished"] and facts["steps"] == 8
    assert Path("run/pipeline/model_index.json").is_file()


def test_report_and_card_of_a_finished_run_and_its_package() -> None:
    report = ["report", str(TRIAL), "package", "--out", "report.html", "--json"]
    notes = json.loads(run(*report))["notes"]
    assert "c-micro" in Path("report.html").read_text()
    manifest = TRIAL / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert len(json.loads(run(*report))["notes"]) == len(notes) + 1, "the package belonged to the run as it was"
    run("report", "run", "--out", "unfinished.html", "--quiet")
    for folder, card in ((TRIAL, TRIAL / "pipeline/README.md"), (Path("package"), Path("package/README.md"))):
        run("card", str(folder))
        assert "c-micro" in card.read_text()


@pytest.mark.parametrize("precision", ["fp32", "mixed"])  # mixed: 0.1's word for products, or weights, in int8
def test_a_package_draws_what_it_drew(precision: str) -> None:
    manifest = Manifest.read(Path("package"), "package")
    manifest.facts["precision"]["unet"] = precision
    manifest.write(Path("package"))
    images, _ = TextToImage.load("package", device="cpu").generate("a red shirt", seed=7, num_inference_steps=4)
    stored = np.asarray(Image.open("image.png"), dtype=int)
    assert np.abs(np.asarray(images[0], dtype=int) - stored).max() <= 1
    run("card", "package")
    assert Path("package/README.md").is_file()


def test_an_evaluation_is_complete_and_a_lost_shard_is_drawn_again() -> None:
    shards = sorted(Path("evaluation").glob("*.safetensors"))
    before = [listing(Path("evaluation"))[shard.name] for shard in shards]
    stored = json.loads(Path("evaluation/scores.json").read_text())
    scores = json.loads(run(*EVALUATE))
    for key in ("scores", "identity", "counts"):
        assert scores[key] == stored[key]
    assert [listing(Path("evaluation"))[shard.name] for shard in shards] == before

    shard = Path("evaluation/pictures-00001.safetensors")
    shard.unlink()
    run(*EVALUATE)
    images, stored_images = (load_file(folder / shard)["pictures"].astype(int) for folder in (Path(), FORMATS))
    assert np.abs(images - stored_images).max() <= 1


def test_the_trials_of_a_sweep_are_done_and_give_the_same_table() -> None:
    before = listing(Path("trials"))
    run("sweep", "table.toml", "--runs", "trials", "--out", "again", "--quiet")
    assert listing(Path("trials")) == before, "nothing is trained or scored anew"
    assert scores_in("again") == scores_in("table")

    run("sweep", "table.toml", "--runs", "none", "--known", "table/table.json", "--out", "known", "--quiet")
    assert not Path("none").exists()
    assert scores_in("known") == scores_in("table")


def scores_in(folder: str) -> list[list[str]]:
    """The numbers of a sweep's table, row by row, without its headings."""
    rows = [line.split("|")[2:-1] for line in Path(folder, "table.md").read_text().splitlines() if line[:1] == "|"]
    return rows[2:]


def test_a_report_where_only_the_package_can_draw() -> None:
    """The run has not finished and its teacher is gone: the images' size is the package's."""
    page = json.loads(run("report", "run", "package", "--out", "page.html", "--json"))
    assert Path("page.html").is_file() and any("teacher is not on this machine" in note for note in page["notes"])
    assert read_run(Path("run"), Path("package")).image_size == Package("package").size
