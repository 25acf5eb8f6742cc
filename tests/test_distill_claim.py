"""One process at a time works on a run folder: the second stops and names the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from training_runs import Killed, RecipeOf, at_step, fail, metrics, ran

from rcdeploy import checkpoint
from rcdeploy.run_folder import exclusive
from rcdeploy_runtime.errors import RcdeployError

ENDLESS = {"max_steps": 100_000, "checkpoint_every": 2, "keep_checkpoints": 1}
CLAIM = Path("run/run.claim")


def distill_command(recipe: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "rcdeploy.cli.main", "distill", str(recipe), "--out", "run", "-q", *options]


@pytest.fixture
def first(recipe_file: Callable[..., Path], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is training in ./run and has written a checkpoint."""
    process = subprocess.Popen(
        distill_command(recipe_file(train=ENDLESS)), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None and not checkpoint.steps_of(Path("run")):
            time.sleep(0.05)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_stops_and_a_killed_ones_run_goes_on(
    first: subprocess.Popen[str], recipe_file: Callable[..., Path], tiny_recipe: RecipeOf
) -> None:
    recipe = recipe_file(train=ENDLESS)
    for options in ([], ["--restart"]):
        second = subprocess.run(distill_command(recipe, *options), capture_output=True, text=True, timeout=100)
        assert second.returncode == 2, second.stderr
        message = " ".join(second.stderr.replace("│", " ").split())
        assert f"process {first.pid} on {os.uname().nodename} has been at work on the run run since 20" in message
        assert "Traceback" not in second.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert CLAIM.is_file()
    (step,) = checkpoint.steps_of(Path("run"))
    start = time.monotonic()
    assert ran(tiny_recipe(train={**ENDLESS, "max_steps": step + 3})).step == step + 3
    assert time.monotonic() - start < 60, "the claim of a killed process is not waited for"
    assert [entry["step"] for entry in metrics("run")] == list(range(1, step + 4)), "one process's metrics"
    assert not CLAIM.exists()


def test_ctrl_c_releases_the_run(first: subprocess.Popen[str]) -> None:
    first.send_signal(signal.SIGINT)
    assert first.wait(100) == 130
    assert not CLAIM.exists()


def test_an_error_releases_the_run(tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe()
    with pytest.raises(Killed):
        ran(recipe, "run", at_step(3, fail))
    assert not CLAIM.exists()
    with pytest.raises(RcdeployError, match="another recipe"):
        ran(tiny_recipe(train={"seed": 3}))
    assert not CLAIM.exists()
    assert ran(recipe).step == 6


def test_a_run_that_failed_before_it_began_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="nothing else"), exclusive(Path("deep/run")):
        assert Path("deep/run/run.claim").is_file()
        raise RcdeployError("nothing else")
    assert not Path("deep").exists()


@pytest.mark.slow
def test_restart_after_a_kill_that_left_the_claim_alone(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / CLAIM).write_text(json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1}))
    command = distill_command(recipe_file(train={"max_steps": 1}), "--restart")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / CLAIM).exists()


def test_other_processes_of_a_distributed_run_share_the_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with exclusive(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with exclusive(tmp_path / "run"):
            assert (tmp_path / "run" / "run.claim").is_file()
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(RcdeployError, match="has been at work"), exclusive(tmp_path / "run"):
            pass
