"""The arithmetic of benchmarks/per_step.py: seconds a step from two images, the table and its baseline."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import per_step


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
