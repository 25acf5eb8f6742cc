"""What stops a run, and what continuing a run refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import (
    Killed,
    RecipeOf,
    at_step,
    fail,
    metrics,
    ran,
    step_folder,
)

from rcdeploy import checkpoint
from rcdeploy.distill import distillation
from rcdeploy.distill.loop import distill
from rcdeploy.progress import no_progress
from rcdeploy.recipe import Recipe
from rcdeploy_runtime.errors import RcdeployError


def test_a_changed_recipe_is_refused(whole: tuple[Recipe, str], tiny_recipe: RecipeOf) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    before = {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")}
    with pytest.raises(RcdeployError, match="holds a run of another recipe") as caught:
        ran(tiny_recipe(train={**train, "learning_rate": 5e-4, "seed": 3}, student={"name": "c-tiny"}), folder)
    assert caught.value.errors == (
        "student.name: c-micro -> c-tiny",
        "train.learning_rate: 0.001 -> 0.0005",
        "train.seed: 0 -> 3",
    )
    assert "--restart" in str(caught.value.fix)
    assert {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")} == before


def test_a_finished_run_may_go_on_for_longer(whole: tuple[Recipe, str], tiny_recipe: RecipeOf) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    assert ran(tiny_recipe(train={**train, "max_steps": 8, "log_every": 2}), folder).step == 8
    assert [entry["step"] for entry in metrics(folder)] == [1, 2, 3, 4, 5, 6, 8]
    assert checkpoint.steps_of(Path(folder))[-2:] == [7, 8]


def test_another_teacher_is_refused(
    whole: tuple[Recipe, str], tiny_recipe: RecipeOf, other_teacher: Path, tmp_path: Path
) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    other = tiny_recipe(train=train, teacher={"path": str(other_teacher)}, cache={"folder": "another"})
    with pytest.raises(RcdeployError, match="started with another teacher"):
        ran(other, folder)
    assert not (tmp_path / "another").exists(), "it is refused before latents are sampled"


def test_other_prompts_are_refused(whole: tuple[Recipe, str], tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    (tmp_path / "more.txt").write_text("a purple hat\n")
    with pytest.raises(RcdeployError, match="started with another prompt_pool"):
        ran(tiny_recipe(train=train, prompts={"pool": ["further.txt", "more.txt"]}), folder)


def _harm(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "truncated":
        del data[-9:]
    elif how == "flipped":
        data[-2] ^= 1
    elif how == "emptied":
        data.clear()
    file.write_bytes(data)
    if how == "removed":
        file.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "removed"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
def test_a_run_continues_from_the_last_whole_checkpoint(whole: tuple[Recipe, str], name: str, how: str) -> None:
    recipe, folder = whole
    before = metrics(folder)
    saved = load_file(step_folder(folder, 6) / "ema.safetensors")
    expected = {key: value.clone() for key, value in saved.items()}  # the file behind them is about to change
    _harm(step_folder(folder, 6) / name, how)
    remarks: list[str] = []
    assert distill(recipe, Path(folder), no_progress, remarks.append).step == 6
    if (name, how) != ("state.json", "removed"):  # without it the folder is not taken for a checkpoint
        assert any(f"step-00000006/{name}" in remark for remark in remarks), remarks
    assert any("continuing from step 5" in remark for remark in remarks), remarks
    again = load_file(step_folder(folder, 6) / "ema.safetensors")
    assert all(torch.equal(again[key], expected[key]) for key in expected)
    assert metrics(folder) == before


def test_a_changed_number_in_the_state_is_found(whole: tuple[Recipe, str]) -> None:
    _, folder = whole
    file = step_folder(folder, 6) / "state.json"
    file.write_text(file.read_text().replace('"ema_steps": 6', '"ema_steps": 7'))
    assert checkpoint.damage(Path(folder), 6) == f"{file} has changed since it was written"


def test_a_run_whose_checkpoints_are_all_damaged_says_so(whole: tuple[Recipe, str]) -> None:
    recipe, folder = whole
    steps = checkpoint.steps_of(Path(folder))
    for step in steps:
        _harm(step_folder(folder, step) / "model.safetensors", "flipped")
    with pytest.raises(RcdeployError, match="no checkpoint that is whole") as caught:
        ran(recipe, folder)
    assert len(caught.value.errors) == len(steps) and "--restart" in str(caught.value.fix)


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_stops_the_run_and_leaves_the_last_good_checkpoint(
    tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """Found in the loss where it is logged, else in the weights before they are saved."""
    count = iter(range(100))
    original = distillation.distillation_loss

    def losses(*args: Any) -> Any:
        total, each = original(*args)
        factor = float("nan") if next(count) == 2 else 1.0
        return total * factor, {name: value * factor for name, value in each.items()}

    monkeypatch.setattr(distillation, "distillation_loss", losses)
    recipe = tiny_recipe(train={"log_every": log_every})
    with pytest.raises(RcdeployError, match="the loss is nan at step 3" if log_every == 1 else "not finite at step 4"):
        ran(recipe)
    assert checkpoint.steps_of(Path("run")) == [2] and not Path("run/pipeline").exists()
    assert all(t.isfinite().all() for t in load_file(step_folder("run", 2) / "model.safetensors").values())
    monkeypatch.setattr(distillation, "distillation_loss", original)
    assert ran(recipe).step == 6, "the same command goes on from there"


def test_a_loss_that_runs_away_stops_the_run(tiny_recipe: RecipeOf) -> None:
    with pytest.raises(RcdeployError, match="diverged") as caught:
        ran(tiny_recipe(train={"learning_rate": 1e3, "checkpoint_every": 1}))
    assert "train.learning_rate" in str(caught.value.fix)


def test_a_full_disk_leaves_no_half_checkpoint(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tensors: Any, path: Path, _metadata: Any = None) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    recipe = tiny_recipe()
    with pytest.raises(Killed):
        ran(recipe, "run", at_step(3, fail))
    monkeypatch.setattr("rcdeploy.storage.tensors.save_file", full)
    with pytest.raises(RcdeployError, match="No space left on device"):
        ran(recipe)
    assert checkpoint.steps_of(Path("run")) == [2]
    assert [p.name for p in Path("run/checkpoints").iterdir()] == ["step-00000002"]
