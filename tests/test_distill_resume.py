"""Runs that are interrupted, accumulate, or have several processes equal an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import (
    FORK,
    GENTLE,
    Killed,
    RecipeOf,
    at_step,
    fail,
    kill,
    metrics,
    ran,
    same_bytes,
    same_to_rounding,
)

from rcdeploy import checkpoint
from rcdeploy.distill.loop import Stopped
from rcdeploy.recipe import Recipe
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest


def test_a_resumed_run_equals_an_uninterrupted_one(one: Recipe) -> None:
    with pytest.raises(Killed):
        ran(one, "other", at_step(5, fail))
    assert checkpoint.steps_of(Path("other")) == [2, 4] and not Path("other/pipeline").exists()
    assert ran(one, "other").step == 6
    same_bytes("one", "other", 6)
    assert Manifest.read(Path("one"), "run").files == Manifest.read(Path("other"), "run").files


@pytest.mark.slow  # it compiles for minutes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("guidance_scale", [None, 3.0])
def test_a_compiled_run_resumes_to_the_bit_and_equals_one_that_is_not(
    tiny_recipe: RecipeOf, guidance_scale: float | None
) -> None:
    """Evaluation amid the steps, with other batches, included."""
    distill = {"guidance_scale": guidance_scale}
    settings = {"evaluate": {"every": 3}, "distill": distill}
    plain, compiled = (tiny_recipe(train={"compile": on}, **settings) for on in (False, True))
    ran(plain, "plain")
    ran(compiled, "one")
    with pytest.raises(Killed):
        ran(compiled, "other", at_step(5, fail))
    torch._dynamo.reset()  # as a new process has it
    ran(compiled, "other")
    same_bytes("one", "other", 6)
    # losses, not weights: AdamW makes steps of what is rounding alone, such as the gradient of a bias before a norm
    for a, b in zip(metrics("plain"), metrics("one"), strict=True):
        norms = a.pop("grad_norm", 0.0), b.pop("grad_norm", 0.0)
        assert norms[0] == pytest.approx(norms[1], rel=2e-2)  # toy norms magnify rounding
        assert a == pytest.approx(b, rel=1e-3)


def test_only_training_is_compiled(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(id(module)))
    ran(tiny_recipe(train={"max_steps": 1}), "one")
    assert not compiled
    ran(tiny_recipe(train={"max_steps": 1, "compile": True}), "two")
    assert len(set(compiled)) == 2  # teacher and student
    same_bytes("one", "two", 1)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(RcdeployError, match=r"no C\+\+ compiler"):
        ran(tiny_recipe(train={"compile": True}), "three")
    assert not Path("three").exists()


def test_metrics_cover_steps_before_and_after_an_interruption(tiny_recipe: RecipeOf) -> None:
    """Logged are means over log_every steps: those done before an interruption count."""
    recipe = tiny_recipe(train={"log_every": 4, "checkpoint_every": 3})
    ran(recipe, "one")
    with pytest.raises(Killed):
        ran(recipe, "other", at_step(4, fail))
    ran(recipe, "other")
    assert [entry["step"] for entry in metrics("one")] == [4, 6]
    same_bytes("one", "other", 6)


def _run_and_die(recipe: Recipe, where: str) -> None:
    if where == "between checkpoints":
        ran(recipe, "other", at_step(5, kill))
    save = checkpoint.save_tensors

    def dying(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        save(path, tensors)
        if path.name == "optimizer.safetensors" and "step-00000004" in str(path):
            kill()

    checkpoint.save_tensors = dying
    ran(recipe, "other")


@pytest.mark.parametrize(("where", "remaining"), [("between checkpoints", [2, 4]), ("while one is written", [2])])
def test_a_killed_run_goes_on(one: Recipe, where: str, remaining: list[int]) -> None:
    process = FORK.Process(target=_run_and_die, args=(one, where))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.steps_of(Path("other")) == remaining
    ran(one, "other")
    same_bytes("one", "other", 6)
    assert not list(Path("other").rglob("*.part")) and not list(Path("other").rglob("*.old"))


def test_ctrl_c_writes_a_checkpoint(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """The installed command, a real SIGINT: exit code 130, the step in hand saved, and no traceback."""
    file = recipe_file(train={"max_steps": 100_000, "checkpoint_every": 100_000})
    command = [sys.executable, "-m", "rcdeploy.cli.main", "distill", str(file), "--out", "run", "-q"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").is_file():
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=100)[1]
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    (step,) = checkpoint.steps_of(tmp_path / "run")
    assert f"stopped after step {step:,}; the same command continues from there" in " ".join(stderr.split())
    assert "Traceback" not in stderr


def test_a_signal_ends_the_step_first(one: Recipe, tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(train={"checkpoint_every": 100})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after step 4"):
        ran(recipe, "other", at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.steps_of(Path("other")) == [4]
    ran(recipe, "other")
    same_bytes("one", "other", 6)


def test_accumulated_parts_equal_one_batch(tiny_recipe: RecipeOf) -> None:
    """All three losses, the task loss too, whose true pairs are spread unevenly over the parts."""
    train = {**GENTLE, "max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9}
    settings = {"loss": {"task": 1.0}, "conditioning": {"probability": "constant"}}
    ran(tiny_recipe(train=train, **settings), "whole")
    ran(tiny_recipe(train={**train, "micro_batch_size": 1}, **settings), "parts")
    same_to_rounding("whole", "parts", 3)


def test_two_processes_equal_one(recipe_file: Callable[..., Path], tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    train = {**GENTLE, "max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9}
    ran(tiny_recipe(train=train), "one")
    options = {"--num_processes": "2", "--num_machines": "1", "--mixed_precision": "no", "--main_process_port": "0"}
    launch = ["-m", "accelerate.commands.launch", "--cpu", *(argument for pair in options.items() for argument in pair)]
    command = ["-m", "rcdeploy.cli.main", "distill", str(recipe_file(train=train)), "--out", "two", "-q"]
    done = subprocess.run(
        [sys.executable, *launch, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same_to_rounding("one", "two", 3)
    assert Manifest.read(Path("two"), "run").wrong_files(Path("two")) == []
