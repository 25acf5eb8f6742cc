"""Measuring a smaller precision: turns and samples end with the seconds, and one of each is always there."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy_export import quality
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.quality import affordable, error_by_timestep, seconds_per_step
from rcdeploy_runtime.errors import RcdeployError


class Slow:
    """A session that takes `seconds`, and gives what it is given."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        self.calls += 1
        time.sleep(self.seconds)
        return inputs["sample"]


def steps(budget: float) -> tuple[dict[str, float], list[Slow], list[tuple[int, int]]]:
    sessions, seen = [Slow(0.02), Slow(0.01)], []
    sample = {"sample": np.zeros((1, 4, 8, 8), np.float32), "timestep": np.asarray(5)}
    both = dict(zip(("fp32", "bf16"), sessions, strict=True))
    seconds = seconds_per_step(both, sample, 2, budget, lambda done, total: seen.append((done, total)))
    return seconds, sessions, seen


def test_the_speed_is_timed_until_the_seconds_are_over() -> None:
    seconds, sessions, seen = steps(budget=0)
    assert [session.calls for session in sessions] == [2, 2], "the first turn, which compiles, is never timed"
    assert seconds["fp32"] > seconds["bf16"] >= 0.01 and seen[-1] == (9, 9)
    seconds, sessions, seen = steps(budget=60)
    assert [session.calls for session in sessions] == [9, 9] and seen == [(k, 9) for k in range(1, 10)]
    assert 0.02 <= seconds["fp32"] < 0.2


def test_the_error_is_taken_at_as_many_timesteps_as_the_seconds_allow(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LatentDiffusionModel(str(small_model))
    text = model.unet_config["cross_attention_dim"]
    samples = [
        {
            "sample": torch.randn(1, 4, 8, 8).numpy(),
            "timestep": np.asarray(t),
            "encoder_hidden_states": torch.randn(1, 8, text).numpy(),
        }
        for t in range(0, 1000, 125)
    ]
    for budget, count in ((0, 1), (60, 8)):
        errors = error_by_timestep(Slow(0.0), model, samples, budget, lambda _done, _total: None)
        assert len(errors) == count and all(error["relative_error"] > 0 for error in errors)
        assert errors[0]["timestep"] == (500 if count == 1 else 0)
    monkeypatch.setattr(quality, "affordable", lambda _budget, _each, _most: 3)
    some = error_by_timestep(Slow(0.0), model, samples, 1.0, lambda _done, _total: None)
    assert [error["timestep"] for error in some] == [125, 500, 750]


def test_what_is_affordable() -> None:
    assert affordable(10, 3, 32) == 3 and affordable(1000, 3, 32) == 32
    assert affordable(-1, 3, 32) == 0 and affordable(10, float("inf"), 32) == 0


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_seconds_that_are_no_budget_are_refused(seconds: float) -> None:
    with pytest.raises(RcdeployError, match="--measure-seconds"):
        ExportOptions(measure_seconds=seconds)
