"""A whole run: golden losses, EMA, pipeline, and which checkpoints stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from training_runs import (
    RecipeOf,
    metrics,
    ran,
    same_bytes,
    step_folder,
)
from transformers import CLIPTextModel

from rcdeploy import checkpoint
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.distillation import DistillationObjective
from rcdeploy.distill.validation import Validator
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy.run_folder import MetricsFile, read_metrics
from rcdeploy_runtime import files
from rcdeploy_runtime.manifest import Manifest

# the tiny recipe's losses when this code passed all the tests here
GOLDEN = [
    {"loss": 3.33959, "output": 0.266184, "feature": 3.0734},
    {"loss": 3.31802, "output": 0.246577, "feature": 3.07145},
    {"loss": 2.9012, "output": 0.271717, "feature": 2.62948},
]


def test_golden_losses(whole: tuple[Recipe, str]) -> None:
    entries = metrics(whole[1])
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    for entry, golden in zip(entries, GOLDEN, strict=False):
        assert {k: entry[k] for k in golden} == pytest.approx(golden, rel=1e-3)
        assert entry["loss"] == pytest.approx(entry["output"] + entry["feature"], rel=1e-5)


def test_the_pipeline_runs_in_one_precision_when_the_teacher_is_stored_in_half(
    recipe_file: Callable[..., Path], tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "half"))
    CLIPTextModel.from_pretrained(folder / "text_encoder").half().save_pretrained(folder / "text_encoder")
    recipe = load_recipe(recipe_file(teacher={"path": "half"}, train={"max_steps": 1}))
    ran(recipe, tmp_path / "run")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run/pipeline", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red shirt", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_the_pipeline_opens_with_diffusers_alone(whole: tuple[Recipe, str]) -> None:
    folder = Path(whole[1])
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red shirt", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3) and 0 <= image.min() <= image.max() <= 1
    assert tuple(pipeline.unet.config.block_out_channels) == (4, 4, 8, 8)
    averages = load_file(step_folder(whole[1], 6) / "ema.safetensors")
    (file,) = (folder / "pipeline" / "unet").glob("*.safetensors")
    saved = load_file(file)
    assert {f"unet.{k}" for k in saved} == set(averages)
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float16 and torch.equal(tensor, averages[f"unet.{name}"].half()), name
    raw = load_file(step_folder(whole[1], 6) / "model.safetensors")
    assert any(not torch.equal(raw[k].half(), averages[k].half()) for k in averages), "EMA, not the raw weights"
    manifest = Manifest.read(folder, "run")
    assert manifest.wrong_files(folder) == [] and "pipeline/unet/config.json" in manifest.files
    assert manifest.facts["finished"] and manifest.facts["steps"] == 6
    assert {m["kind"] for m in manifest.made_from} == {"latent_cache", "prompt_pool"}


def test_ema_is_warmed_up(whole: tuple[Recipe, str]) -> None:
    """decay of update s = min(decay, (1 + s) / (10 + s)); the first update takes the weights as they are."""
    models = [load_file(step_folder(whole[1], s) / "model.safetensors") for s in range(1, 7)]
    shadow = {k: v.clone() for k, v in models[0].items()}
    for s, model in enumerate(models):
        decay = min(0.25, (1 + s) / (10 + s)) if s else 0.0
        shadow = {k: decay * shadow[k] + (1 - decay) * v for k, v in model.items()}
        saved = load_file(step_folder(whole[1], s + 1) / "ema.safetensors")
        assert all(torch.allclose(saved[k], shadow[k], rtol=1e-5, atol=1e-7) for k in saved), s + 1
        assert json.loads((step_folder(whole[1], s + 1) / "state.json").read_text())["ema_steps"] == s + 1


def test_without_averaging_the_weights_themselves_are_kept(tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(train={"max_steps": 4, "checkpoint_every": 2, "ema_decay": 0})
    ran(recipe, "one")
    ran(recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 2})}), "two")
    ran(recipe, "two")  # goes on
    same_bytes("one", "two", 4)
    raw, saved = (load_file(step_folder("one", 4) / f"{name}.safetensors") for name in ("model", "ema"))
    assert saved and all(torch.equal(raw[k], saved[k]) for k in saved)
    (file,) = Path("one/pipeline/unet").glob("*.safetensors")
    assert all(torch.equal(v, saved[f"unet.{k}"].half()) for k, v in load_file(file).items())


def test_without_random_texts_the_text_encoder_gives_its_memory_back(
    tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    short = {"max_steps": 1, "checkpoint_every": 1}
    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusionModel, "release", lambda _, *names: released.extend(names))
        ran(tiny_recipe(train=short), "one")
        assert not released
        none = tiny_recipe(train=short, conditioning={"probability": "none"})
        ran(none, "two")
        assert released == ["text_encoder", "text_encoder_2"]
    ran(none, "three")  # and what needs it again loads it again
    same_bytes("two", "three", 1)
    assert (Path("three/pipeline/text_encoder/config.json")).is_file()


def test_projectors_are_trained_and_saved(whole: tuple[Recipe, str]) -> None:
    first, last = (load_file(step_folder(whole[1], s) / "model.safetensors") for s in (1, 6))
    projectors = [k for k in last if k.startswith("projectors.")]
    assert len(projectors) == 18, "a weight and a bias for each of c-micro's nine taps"
    assert all(not torch.equal(first[k], last[k]) for k in projectors)
    moments = load_file(step_folder(whole[1], 6) / "optimizer.safetensors")
    assert all(moments[f"{k}/exp_avg"].abs().max() > 0 for k in projectors)
    assert not any(k.startswith("projectors.") for k in load_file(step_folder(whole[1], 6) / "ema.safetensors"))


def test_the_last_checkpoints_and_the_best_stay(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(DistillationObjective, "validation_loss", lambda *_: next(values))
    monkeypatch.setattr(Validator, "_write_grid", lambda *_: None)
    recipe = tiny_recipe(train={"max_steps": 8, "checkpoint_every": 2, "keep_checkpoints": 1}, evaluate={"every": 2})
    assert ran(recipe).best == (1.0, 4)
    assert checkpoint.steps_of(Path("run")) == [4, 8]
    assert Manifest.read(Path("run"), "run").facts["best_step"] == 4


def test_metrics_are_on_the_disk_before_the_checkpoint(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(Path(path).name))
    ran(tiny_recipe(train={"max_steps": 2, "checkpoint_every": 2}))
    assert synced.index("metrics.jsonl") < synced.index("model.safetensors")


def test_sample_images_and_curves_of_a_run(tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(train={"max_steps": 2}, evaluate={"every": 2, "prompts": ["a red shirt", "a blue bag"]})
    state = ran(recipe)
    (entry,) = [entry for entry in metrics("run") if "validation" in entry]
    assert entry["step"] == 2
    assert state.best == (entry["validation"], 2)
    assert (Path("run") / "loss.png").stat().st_size > 0
    latest = Path("run") / "samples" / "latest.png"
    assert latest.read_bytes() == (Path("run") / "samples" / "step-00000002.png").read_bytes()


@pytest.mark.parametrize(
    "damage", [b"\x9f\xf3\x00{", b'{"step": 3', b"[3]", b'{"loss": 1.0}', b'{"step": "3"}', b"[" * 100_000]
)
def test_metrics_end_where_they_are_damaged(damage: bytes, tmp_path: Path) -> None:
    whole = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole + damage + b'\n{"step": 4, "loss": 1.0}\n')
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2]
    assert [entry["step"] for entry in MetricsFile(tmp_path, 1).entries] == [1]
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole.splitlines(keepends=True)[0]
