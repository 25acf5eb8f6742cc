"""Trials: run once, scored for each part of the prompts, left alone while another process runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from sweeps import SCORE, silent
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.evaluate.frechet import Statistics
from rcdeploy.storage.claims import Claim
from rcdeploy.sweep.plan import Plan, load_plan
from rcdeploy.sweep.run_trial import run_trial
from rcdeploy.sweep.scores import TrialScores
from rcdeploy_runtime.errors import RcdeployError


def test_trials_run_once_and_are_scored(finished: Plan, tmp_path: Path) -> None:
    assert all(finished.is_done(trial) for trial in finished.trials)
    times = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    for trial in finished.trials:
        run_trial(finished, trial, silent, silent)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == times
    assert not list(tmp_path.rglob("*.claim"))

    scores = TrialScores(finished)
    assert len(scores.prompts) == len(scores.parts["all"]) == 12
    assert [p for p, chosen in zip(scores.prompts, scores.parts["shoes"], strict=True) if chosen] == [
        p for p in scores.prompts if "shoe" in p
    ]
    values_by_trial = {trial.key: scores(trial) for trial in finished.trials}
    names = ("item", "colour", "all", "inception score")
    for values in values_by_trial.values():
        assert set(values) == {f"{part} {name}" for part in ("all", "shoes") for name in names}
        assert all(0 <= value <= 1 for name, value in values.items() if "inception" not in name)


def test_a_reference_needs_no_new_images(finished: Plan, tmp_path: Path) -> None:
    Statistics.of(torch.rand(40, 16)).save(tmp_path / "judge/reference.safetensors")
    few = load_plan(tmp_path / "table.toml")
    assert all(few.is_done(trial) for trial in few.trials)
    assert "all frechet distance" not in TrialScores(few)(few.trials[0])  # 12 images, 16 features
    (tmp_path / "score.toml").write_text("allow_few = true\n" + SCORE)
    plan = load_plan(tmp_path / "table.toml")
    assert all(plan.is_done(trial) for trial in plan.trials)
    assert TrialScores(plan)(plan.trials[0])["all frechet distance"] > 0


def test_images_may_be_deleted(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    plan = load_plan(sweep_file(score="keep_pictures = false\n" + SCORE))
    run_trial(plan, plan.teacher, silent, silent)
    assert plan.is_done(plan.teacher)
    assert not list(tmp_path.rglob("pictures-*"))
    assert TrialScores(plan)(plan.teacher)


def test_missing_weights_are_an_error_before_anything_is_trained(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = sweep_file(score=SCORE.replace("batch_size", 'metrics = ["judge", "clip"]\nbatch_size'))
    result = CliRunner().invoke(app, ["sweep", str(file)])
    assert isinstance(result.exception, RcdeployError)
    assert "laion/CLIP-ViT-g-14-laion2B-s12B-b42K is not a local folder" in str(result.exception)
    (tmp_path / "score.toml").write_text(
        SCORE.replace("batch_size", 'metrics = ["vqa"]\nvqa = "judge"\nbatch_size')  # spaCy's pipeline is not installed
    )
    result = CliRunner().invoke(app, ["sweep", str(file)])
    assert isinstance(result.exception, RcdeployError)
    assert "spacy download en_core_web_sm" in str(result.exception.fix) or "compbench" in str(result.exception.fix)
    assert not (tmp_path / "runs").exists()


def test_a_trial_that_another_process_runs_is_left_alone(sweep_file: Callable[..., Path]) -> None:
    plan = load_plan(sweep_file())
    trial = plan.trials[1]
    trial.folder.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        Claim(trial.folder).path.write_text(json.dumps({"host": os.uname().nodename, "pid": other.pid}))
        assert not run_trial(plan, trial, silent, silent)
        other.kill()
    assert not trial.folder.exists()
