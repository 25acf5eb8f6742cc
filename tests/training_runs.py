"""Shared by the tests of distillation: runs of the tiny recipe, and comparisons of two runs."""

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
from safetensors.torch import load_file

from rcdeploy.distill.loop import distill
from rcdeploy.distill.train_state import TrainState
from rcdeploy.recipe import Recipe

RecipeOf = Callable[..., Recipe]
# from a clean server: a fork of this process would inherit locks that threads of other tests' libraries hold
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["diffusers", "transformers", "rcdeploy.latent_cache"])
STUDENTS = ("b-base", "b-small", "b-tiny", "slim-b-base", "c-base", "c-small", "c-tiny", "c-micro")
# Adam divides by the size of the gradient: where that is rounding alone, a small eps would make it a whole step
GENTLE = {"adam_eps": 1e-2}


def ran(recipe: Recipe, folder: str = "run", progress: Any = lambda *_: None) -> TrainState:
    return distill(recipe, Path(folder), progress, lambda _text: None)


def step_folder(folder: str, step: int) -> Path:
    return Path(folder) / "checkpoints" / f"step-{step:08}"


def metrics(folder: str) -> list[dict[str, Any]]:
    entries = [json.loads(text) for text in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "seconds_per_step"} for entry in entries]


def same_bytes(one: str, other: str, step: int) -> None:
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        a = load_file(step_folder(one, step) / name)
        b = load_file(step_folder(other, step) / name)
        assert list(a) == list(b) and len(a) > 0
        assert [k for k in a if not torch.equal(a[k], b[k])] == [], name
    assert metrics(one) == metrics(other)


def same_to_rounding(one: str, other: str, step: int) -> None:
    a, b = (load_file(step_folder(f, step) / "model.safetensors") for f in (one, other))
    first = load_file(step_folder(one, 1) / "model.safetensors")
    assert a.keys() == b.keys() and any(k.startswith("projectors.") for k in a)
    for name in a:
        moved = (a[name] - first[name]).abs().max()
        assert (a[name] - b[name]).abs().max() <= 1e-3 * moved + 1e-7, name
    for x, y in zip(metrics(one), metrics(other), strict=True):
        assert x.pop("grad_norm") == pytest.approx(y.pop("grad_norm"), rel=2e-3)  # toy norms magnify rounding
        assert x == pytest.approx(y, rel=1e-4)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that several tests share, each trained once, by the first test that needs it."""
    return tmp_path_factory.mktemp("shared")


def once(shared: Path, recipe: Recipe, name: str) -> None:
    """The uninterrupted run of the recipe, as tmp_path/NAME; and its cache, as tmp_path/cache."""
    if not (shared / name).exists():
        ran(recipe, name)
        shutil.copytree(name, shared / name)
        shutil.copytree("cache", shared / "cache", dirs_exist_ok=True)
    else:
        shutil.copytree(shared / name, name)
        shutil.copytree(shared / "cache", "cache", dirs_exist_ok=True)


@pytest.fixture
def one(tiny_recipe: RecipeOf, shared: Path) -> Recipe:
    """The tiny recipe; tmp_path/one is an uninterrupted run of it."""
    recipe = tiny_recipe()
    once(shared, recipe, "one")
    return recipe


@pytest.fixture
def whole(tiny_recipe: RecipeOf, shared: Path) -> tuple[Recipe, str]:
    """A run with all its checkpoints, and a fast EMA."""
    recipe = tiny_recipe(train={"checkpoint_every": 1, "keep_checkpoints": 10, "ema_decay": 0.25})
    once(shared, recipe, "run")
    return recipe, "run"


class Killed(Exception):
    pass


def at_step(step: int, do: Callable[[], None], training: str = "distill") -> Callable[..., None]:
    def progress(stage: str, completed: int, *_: Any) -> None:
        if stage == training and completed == step:
            do()

    return progress


def fail() -> None:
    raise Killed


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
