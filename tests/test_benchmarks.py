"""The arithmetic of the benchmarks: seconds a step from two images, costs of a picture, tables and their baselines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import per_step
import picture

from rcdeploy.bench.costs import component_costs
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve


def test_a_step_is_what_more_steps_take_longer() -> None:
    asked = []
    disturbances = iter([0.0, 0.0, 4.0, 0.0, 0.0, 0.0])  # of one image in six: a median passes over it

    def ask(line: str) -> float:
        asked.append(line)
        return 2.5 if line == "memory" else 3.0 + 0.5 * int(line) + next(disturbances)

    measured = per_step.measure(ask, steps=5, turns=3)
    assert asked == ["1", "5"] * 3 + ["memory"]
    assert (measured.step, measured.rest, measured.memory) == (0.5, 3.0, 2.5)


def test_the_table_names_its_baseline_with_its_precision() -> None:
    baseline, ours = per_step.Measured(2.0, 10.0, 5.0), per_step.Measured(1.0, 5.0, 2.0)
    head, _, first, second = per_step.table([(per_step.BASELINE, baseline), ("ours", ours)], steps=25).splitlines()
    assert "times diffusers (torch), fp32" in head and "image of 25 steps" in head
    assert first.split("|")[2:-1] == [" 2 ", " 10 ", " 5.0 ", " 60 ", " 1.00 "]
    assert second.split("|")[-2] == " 2.00 "


@pytest.mark.parametrize("program", per_step.PROGRAMS)
def test_every_program_names_its_precision(program: per_step.Program) -> None:
    assert program.name.endswith(program.precision)
    assert program.package is None or program.package[1] == program.precision


def test_the_cost_of_a_picture_counts_every_call(small_model: Path) -> None:
    guided, folded = (picture.Row("x", "ours", small_model, "fp32", 4, guidance) for guidance in (7.5, 1.0))
    assert (guided.unet_calls, folded.unet_calls) == (8, 4)
    parts = component_costs(describe_model(resolve(small_model)), (64, 64))
    calls = {"text_encoder": 1, "unet": 4, "vae_decoder": 1}
    assert folded.macs() == sum(n * parts[name]["macs"] for name, n in calls.items())
    table = picture.markdown([guided, folded], [(2.0, 0.5, ""), (0.5, 0.25, "0.4 to 0.6")], [{}, {}])
    assert [line.split(" | ")[-1] for line in table.splitlines()[2:]] == ["1.0 |", "4.0 |"]
    assert "item" not in table
    scores = {"judge.item": 0.5, "judge.colour": 1.0, "judge.frechet_distance": 4.321}
    scored = picture.markdown([guided, folded], [(2.0, 0.5, ""), (0.5, 0.25, "")], [{}, scores])
    assert scored.splitlines()[3].endswith("| 50.0 | 100.0 | 4.32 |")
