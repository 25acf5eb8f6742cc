"""The commands as a user types them, on what needs no training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rcdeploy.cli.main import app

ROOT = Path(__file__).parent.parent
run = CliRunner().invoke


def test_help_teaches_every_command() -> None:
    page = run(app, ["--help"]).output
    for command in (
        "distill",
        "cache",
        "estimate",
        "evaluate",
        "export",
        "generate",
        "bench",
        "report",
        "card",
        "push",
        "students",
        "sweep",
        "recipes",
        "prompts",
    ):
        assert command in page
        assert run(app, [command, "--help"]).exit_code == 0


def commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and group of commands, as the words that a user types."""
    return [path] + [c for name, sub in getattr(group, "commands", {}).items() for c in commands(sub, (*path, name))]


@pytest.mark.parametrize("command", commands(typer.main.get_command(app)), ids=" ".join)
def test_short_help_works_everywhere(command: tuple[str, ...]) -> None:
    short, long = (run(app, [*command, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0 and short.output == long.output


def test_python_m_rcdeploy_is_the_command() -> None:
    for module in ("rcdeploy", "rcdeploy.cli.main"):  # the second is what accelerate launch is given
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("rcdeploy ")


def test_recipes_lists_the_shipped_ones() -> None:
    rows = json.loads(run(app, ["recipes", "--json"]).output)
    names = {Path(row["recipe"]).stem for row in rows}
    assert {"quickstart", "b_base", "b_small", "b_tiny", "c_base", "c_small", "c_tiny", "c_micro"} <= names
    assert all(row["what for"] for row in rows)


def test_check_prints_the_resolved_recipe() -> None:
    arguments = ["recipes", "check", str(ROOT / "recipes/b_tiny.toml"), "--no-files", "--set", "train.max_steps=7"]
    resolved = json.loads(run(app, arguments).output)
    assert resolved["train"]["max_steps"] == 7
    assert resolved["conditioning"]["probability"] == "exponential"
    assert resolved["train"]["weight_decay"] == 0.01


@pytest.mark.parametrize("recipe", [None, "c_micro"])
def test_plot_draws(tmp_path: Path, recipe: str | None) -> None:
    which = [str(ROOT / f"recipes/{recipe}.toml")] if recipe else []
    result = run(app, ["recipes", "plot", *which, "--out", str(tmp_path / "p.svg")])
    assert result.exit_code == 0
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_students_of_a_teacher_folder(tiny_teacher: Path) -> None:
    rows = {r["name"]: r for r in json.loads(run(app, ["students", "--teacher", str(tiny_teacher), "--json"]).output)}
    assert rows["c-micro"]["parameters"] < rows["b-tiny"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["koala-1b"]["error"]
    assert "0.5" in run(app, ["students", "--teacher", str(tiny_teacher)]).output
