"""Recipes that say "wordnet", and the shipped recipe of SD-1.4's smallest student with a toy teacher in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_wordnet import write_wordnet
from typer.testing import CliRunner

from rcdeploy import cache_latents
from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.estimate import workload
from rcdeploy.prompts.nouns import write_shipped
from rcdeploy.prompts.pool import PromptPool
from rcdeploy.prompts.recipe_pool import find_pool, open_pool, paired_sources, pool_sources, visual_nouns
from rcdeploy.prompts.wordnet import WordNet
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy.run_folder import check_recipe
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tiny(tmp_path: Path) -> WordNet:
    return WordNet.open(write_wordnet(tmp_path / "wordnet"))


@pytest.fixture
def shipped_tiny(tiny: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WordNet:
    """The nouns that come with rcdeploy are those of the tiny WordNet."""
    write_shipped(tiny, tmp_path / "wordnet" / "nouns.txt.gz")
    monkeypatch.setattr("rcdeploy.prompts.nouns.FILE", tmp_path / "wordnet" / "nouns.txt.gz")
    return tiny


@pytest.fixture
def no_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdeploy.prompts.wordnet.FILES", ("data.noun that nobody has", "index.noun"))


Recipes = Callable[..., Recipe]


def test_a_recipe_makes_its_prompts_once(shipped_tiny: WordNet, tiny_recipe: Recipes, tmp_path: Path) -> None:
    overrides = {"paired": ["wordnet"], "pool": ["wordnet"], "per_noun": 6, "paired_count": 12}
    recipe = tiny_recipe(prompts=overrides, cache={"folder": None})
    assert recipe.prompts.paired == ["wordnet"]  # no path
    remarks: list[str] = []
    (paired,), (pool,) = paired_sources(recipe, remarks.append), pool_sources(recipe, remarks.append)
    nouns = visual_nouns()
    lines = paired.read_text().splitlines()
    assert len(lines) == 12 and len(pool.read_text().splitlines()) == 6 * len(nouns) and len(remarks) == 2
    assert set(lines) <= set(pool.read_text().splitlines())
    before = {file: file.stat().st_mtime_ns for file in (paired, pool)}
    assert len(open_pool(recipe, remarks.append)) == 6 * len(nouns)
    teacher = LatentDiffusionModel(recipe.teacher.path)
    folder = cache_latents.prepare(recipe, teacher, paired_sources(recipe)).folder
    assert sorted((folder / "prompts.txt").read_text().splitlines()) == sorted(lines)
    assert {file: file.stat().st_mtime_ns for file in (paired, pool)} == before and len(remarks) == 3
    assert not list((tmp_path / "pools").glob("*.claim"))
    # other prompts are other files; the same from nothing are the same bytes
    other = tiny_recipe(prompts={**overrides, "per_noun": 7}, cache={"folder": None})
    assert not {paired, pool} & {*paired_sources(other), *pool_sources(other)}
    text = paired.read_bytes()
    paired.unlink()
    assert paired_sources(recipe) == [paired] and paired.read_bytes() == text


def test_a_recipe_may_mix_wordnet_with_files(shipped_tiny: WordNet, tiny_recipe: Recipes) -> None:
    recipe = tiny_recipe(prompts={"paired": ["paired.txt", "wordnet"], "pool": [], "paired_count": 5, "per_noun": 2})
    assert len(open_pool(recipe)) == 20 + 5  # the captions of the file, and as many as requested of WordNet's


def test_the_estimate_counts_prompts_that_do_not_exist_yet(
    shipped_tiny: WordNet, tiny_recipe: Recipes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workload, "WORDNET_NOUNS", len(visual_nouns()))
    overrides: dict[str, Any] = {"paired": ["wordnet"], "pool": ["wordnet", "further.txt"], "per_noun": 6}
    recipe = tiny_recipe(prompts=overrides | {"paired_count": 12})
    counts = workload.count_prompts(recipe)
    assert not (tmp_path / "pools").exists()
    assert (counts.paired.count, counts.pool.count) == (12, len(open_pool(recipe)))
    real = open_pool(recipe).manifest.facts["bytes"]
    assert abs(counts.pool.size - real) < 0.25 * real and any("WordNet" in note for note in counts.notes)


def test_shipped_recipes_need_nothing_prepared(no_wordnet: None) -> None:
    files = [f for f in (ROOT / "recipes").glob("*.toml") if "/stable-diffusion-" in f.read_text()]
    assert len(files) == 15
    for file in files:
        prompts = load_recipe(file, check_files=False).prompts
        assert (prompts.paired, prompts.pool, prompts.per_noun) == (["wordnet"], ["wordnet"], 128)
        latents = 20_000 if file.stem == "sd15_one_gpu" else 212_000
        assert prompts.paired_count == latents
        counts = workload.count_prompts(load_recipe(file))  # the teacher is a name on the hub
        assert counts.paired.count == latents and 3_000_000 < counts.pool.count < 4_000_000


def test_runs_begun_before_there_was_per_noun_go_on(tiny_recipe: Recipes, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    before = recipe.resolved()
    del before["prompts"]["per_noun"]
    (tmp_path / "run").mkdir()
    Manifest("run", recipe=before).write(tmp_path / "run")
    check_recipe(tmp_path / "run", recipe)
    with pytest.raises(RcdeployError, match="prompts.paired_count: 12 -> 13"):
        check_recipe(tmp_path / "run", tiny_recipe(prompts={"paired_count": 13}))


def test_pools_are_located_by_digest(tiny_recipe: Recipes, tmp_path: Path) -> None:
    pool = open_pool(tiny_recipe())
    (tmp_path / "pools" / "no-pool").mkdir()
    assert find_pool(pool.digest) is None and find_pool(None, [pool.folder]) is None
    found = [find_pool(pool.digest, [pool.folder]), find_pool(pool.digest, ["nowhere"], [tmp_path])]
    assert [f is not None and f.digest for f in found] == [pool.digest] * 2
    assert find_pool("0" * 64, [pool.folder], [tmp_path]) is None


RECIPE = Path(__file__).parent.parent / "recipes" / "c_micro.toml"


SMALL = {
    "prompts.per_noun": 1,
    "prompts.paired_count": 8,
    "cache.num_inference_steps": 1,
    "cache.resolution": 64,
    "cache.batch_size": 4,
    "train.max_steps": 3,
    "train.global_batch_size": 4,
    "train.micro_batch_size": 4,
    "train.mixed_precision": '"no"',
    "train.checkpoint_every": 2,
    "evaluate.every": 0,
    "evaluate.score": '"validation"',  # not CLIP's, which is on the hub
    "evaluate.keep": '"last"',
    "evaluate.num_inference_steps": 1,
    "evaluate.validation_size": 4,
}


def test_c_micro_needs_the_teachers_weights_alone(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcdeploy.prompts.wordnet.FILES", ("nobody has this", "index.noun"))  # none is installed
    overrides = {"teacher.path": f'"{tiny_teacher}"', **SMALL}
    command = ["distill", str(RECIPE), "--json", "--quiet"]
    command += [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    run = tmp_path / "runs" / "c_micro"
    assert (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    student = json.loads((run / "pipeline" / "unet" / "config.json").read_text())
    assert student["block_out_channels"] == [4, 4, 8, 8]  # half of the teacher's
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 3
    (folder,) = (path for path in (tmp_path / "pools").iterdir() if path.is_dir())
    with PromptPool.open(folder) as pool:
        assert len(pool) == 25_992 and any("teapot" in prompt for prompt in pool)
