"""The latent cache: the same bytes however it is filled, refused when it is another's, repaired when it is damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PAIRED, save_teacher
from safetensors.torch import load_file, save_file

from rcdeploy import cache_latents
from rcdeploy.cache_latents import make_latent_cache
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.latent_cache import LatentCache
from rcdeploy.recipe import Recipe
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

RecipeOf = Callable[..., Recipe]
# from a clean server: a fork of this process would inherit locks that threads of other tests' libraries hold
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["diffusers", "transformers", "rcdeploy.latent_cache"])


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("latents-*.safetensors"))}


def filled(recipe: Recipe) -> Path:
    return make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path)).folder


@pytest.fixture(scope="module")
def reference(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every shard of the tiny recipe's cache, as one process makes them four latents at a time."""
    from conftest import DEFAULTS

    folder = tmp_path_factory.mktemp("reference")
    (folder / "paired.txt").write_text("".join(f"{p}\n" for p in PAIRED))
    recipe = Recipe.model_validate(
        {
            "name": "reference",
            "teacher": {"path": str(tiny_teacher)},
            "prompts": {"paired": [str(folder / "paired.txt")], **DEFAULTS["prompts"]},
            "cache": {"folder": str(folder / "cache"), **DEFAULTS["cache"]},
        }
    )
    return shards(filled(recipe))


def test_contents_of_a_cache(tiny_recipe: RecipeOf, reference: dict[str, bytes]) -> None:
    """fp16, scaled, a whole latent a row, in shards of shard_size; no larger than it must be."""
    recipe = tiny_recipe()
    folder = filled(recipe)
    assert shards(folder) == reference
    assert [load_file(p)["latents"].shape for p in sorted(folder.glob("latents-*.safetensors"))] == [
        (5, 4, 8, 8),
        (5, 4, 8, 8),
        (2, 4, 8, 8),
    ]
    assert all(load_file(p)["latents"].dtype == torch.float16 for p in folder.glob("latents-*.safetensors"))
    assert max(len(b) for b in reference.values()) < 5 * 4 * 8 * 8 * 2 + 200

    cache = LatentCache.open(folder)
    teacher = LatentDiffusionModel(recipe.teacher.path)
    assert len(cache) == 12 and len(cache.prompts) == 12
    assert len(set(cache.prompts)) == 12 and set(cache.prompts) <= set(PAIRED)
    by_hand = sample_latents(
        teacher.unet,
        teacher.schedule,
        starting_noise(0, [7], cache.shape),
        teacher.encode_prompts([cache.prompts[7]]),
        teacher.encode_prompts([""]),
        num_inference_steps=2,
        guidance_scale=7.5,
    )
    row = cache.latents([11, 7])
    assert row.shape == (2, 4, 8, 8) and row.dtype == torch.float32
    assert torch.allclose(row[1], by_hand[0], rtol=2e-3, atol=2e-3), "UNet latents are scaled already: no second time"
    assert cache.manifest.latents == {"shape": [4, 8, 8], "scaling_factor": 0.5}
    assert Manifest.read(folder, "latent_cache").wrong_files(folder) == []
    assert json.loads((folder / "index.json").read_text())["latents-00002.safetensors"] == [10, 12]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_changes_no_more_than_rounding(tiny_recipe: RecipeOf, batch_size: int) -> None:
    """Kernels of another size add in another order (oneDNN, BLAS): fp32 rounding, seen in a few fp16 values."""
    four = tiny_recipe()
    other = tiny_recipe(cache={"batch_size": batch_size, "folder": "other"})
    a, b = (make_latent_cache(r, LatentDiffusionModel(r.teacher.path)).latents(range(12)) for r in (four, other))
    assert torch.allclose(a, b, rtol=2**-10, atol=2**-14), "one unit in the last place of fp16"
    assert (a == b).float().mean() > 0.98


def test_shard_size_changes_no_more_than_rounding(tiny_recipe: RecipeOf) -> None:
    five = tiny_recipe()
    seven = tiny_recipe(cache={"shard_size": 7, "folder": "seven"})
    a, b = (make_latent_cache(r, LatentDiffusionModel(r.teacher.path)).latents(range(12)) for r in (five, seven))
    assert torch.allclose(a, b, rtol=2**-10, atol=2**-14)
    assert [len(s.get_shape()) and s.get_shape()[0] for s in LatentCache.open(Path("seven")).shards] == [7, 5]


def _fill_as(rank: int, recipe: Recipe) -> None:
    os.environ["RANK"] = str(rank)
    make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path))


def test_two_processes_fill_one_folder(tiny_recipe: RecipeOf, reference: dict[str, bytes]) -> None:
    recipe = tiny_recipe()
    workers = [FORK.Process(target=_fill_as, args=(rank, recipe)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    folder = Path(str(recipe.cache.folder))
    assert shards(folder) == reference
    assert LatentCache.open(folder).manifest.wrong_files(folder) == []
    assert not list(folder.rglob("*.claim")) and not list(folder.rglob("*.part"))


def _fill_and_stop(recipe: Recipe, at: int) -> None:
    def progress(_stage: str, done: int, *_: Any) -> None:
        if done >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path), progress)


@pytest.mark.parametrize("at", [1, 4, 9, 12])
def test_a_killed_process_changes_nothing(tiny_recipe: RecipeOf, reference: dict[str, bytes], at: int) -> None:
    recipe = tiny_recipe()
    folder = Path(str(recipe.cache.folder))
    worker = FORK.Process(target=_fill_and_stop, args=(recipe, at))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert list(folder.glob("*.claim")), "it was killed while it held a shard"
    whole = {p.name: p.stat().st_mtime_ns for p in folder.glob("latents-*.safetensors")}
    assert len(whole) == (at - 1) // 5
    with pytest.raises(RcdeployError, match="lacks"):
        LatentCache.open(folder)
    filled(tiny_recipe(cache={"batch_size": 3}))  # started with 4: it continues with 4
    assert shards(folder) == reference
    assert {name: (folder / name).stat().st_mtime_ns for name in whole} == whole, "whole shards stay"
    assert not list(folder.rglob("*.claim"))


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_a_truncated_shard_is_named_and_only_it_is_replaced(
    tiny_recipe: RecipeOf, reference: dict[str, bytes], cut: int
) -> None:
    recipe = tiny_recipe()
    folder = filled(recipe)
    broken = folder / "latents-00001.safetensors"
    broken.write_bytes(broken.read_bytes()[:cut])
    before = {
        p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("latents-*.safetensors") if p != broken
    }
    with pytest.raises(RcdeployError, match=r"lacks 1 of 3 shards: latents-00001\.safetensors\n") as caught:
        LatentCache.open(folder)
    assert "rcdeploy cache" in str(caught.value.fix)
    remarks: list[str] = []
    make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path), log=remarks.append)
    assert len(remarks) == 1 and "latents-00001.safetensors" in remarks[0]
    assert shards(folder) == reference
    after = {
        p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("latents-*.safetensors") if p != broken
    }
    assert after == before


def test_a_full_cache_is_loaded_without_the_teacher(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe()
    folder = filled(recipe)
    before = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(cache_latents, "sample_latents", lambda *_a, **_k: pytest.fail("sampled again"))
    filled(recipe)
    assert {p.name: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_cache_of_another_teacher_is_refused(tiny_recipe: RecipeOf, other_teacher: Path) -> None:
    filled(tiny_recipe())
    recipe = tiny_recipe(teacher={"path": str(other_teacher)})
    with pytest.raises(RcdeployError, match=r"made with the teacher tiny \(\w{16}\), not other \(\w{16}\)"):
        filled(recipe)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"cache": {"num_inference_steps": 3}},
            "cache.num_inference_steps: the cache was made with 2, the recipe asks for 3",
        ),
        (
            {"cache": {"guidance_scale": 2.0}},
            "cache.guidance_scale: the cache was made with 7.5, the recipe asks for 2.0",
        ),
        ({"cache": {"seed": 4}}, "cache.seed: the cache was made with 0, the recipe asks for 4"),
        ({"prompts": {"paired_count": 5}}, "prompts.paired_count: the cache was made with 12, the recipe asks for 5"),
        ({"prompts": {"paired": ["further.txt"]}}, "prompts.paired"),
    ],
)
def test_a_cache_of_other_settings_is_refused(tiny_recipe: RecipeOf, change: dict[str, Any], expected: str) -> None:
    folder = filled(tiny_recipe())
    before = shards(folder)
    with pytest.raises(RcdeployError, match="made with other settings") as caught:
        filled(tiny_recipe(**change))
    assert any(expected in error for error in caught.value.errors)
    assert shards(folder) == before


def test_each_set_of_settings_gets_a_folder_of_its_own(tiny_recipe: RecipeOf) -> None:
    folders = {
        filled(tiny_recipe(cache={"folder": None, **change})).resolve()
        for change in ({}, {"seed": 1}, {"guidance_scale": 1.0}, {"batch_size": 3})
    }
    assert len(folders) == 3, "batch_size is not among what the latents depend on"
    assert {f.parent for f in folders} == {Path("caches").resolve()}


def test_the_vae_is_never_loaded(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentDiffusionModel, "decode", lambda *_a: pytest.fail("decoded"))
    monkeypatch.setattr(LatentDiffusionModel, "vae", property(lambda _self: pytest.fail("the VAE was loaded")))
    filled(tiny_recipe())


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_teacher_with_nan_weights_is_refused(
    tiny_recipe: RecipeOf, tiny_teacher: Path, tmp_path: Path, part: str
) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "nan")
    (file,) = (tmp_path / "nan" / part).glob("*.safetensors")
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RcdeployError, match=f"the {part} has NaN or infinite weights: "):
        filled(tiny_recipe(teacher={"path": str(tmp_path / "nan")}))
    assert not (tmp_path / "cache").exists()


def test_nan_latents_are_not_stored(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache_latents, "sample_latents", lambda _u, _s, noise, *_a, **_k: noise * float("nan"))
    with pytest.raises(RcdeployError, match="made NaN of 'a "):
        filled(tiny_recipe())
    assert not list((tmp_path / "cache").glob("latents-*")) and not list((tmp_path / "cache").glob("*.claim"))


def test_another_resolution(tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    cache = make_latent_cache(
        recipe := tiny_recipe(cache={"resolution": 32}), LatentDiffusionModel(recipe.teacher.path)
    )
    assert cache.shape == (4, 4, 4)
    with pytest.raises(RcdeployError, match="not a multiple of 8 pixels"):
        filled(tiny_recipe(cache={"resolution": 36, "folder": "odd"}))
    assert not (tmp_path / "odd").exists()


def test_a_teacher_of_another_kind(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "addition_embed_type": "image_hint"}))
    with pytest.raises(RcdeployError, match="added conditioning"):
        LatentDiffusionModel(str(folder))
