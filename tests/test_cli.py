"""The commands as a user types them, on what needs no training."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import listing
from typer.testing import CliRunner

from rcdeploy.cli.console import show_error, show_table
from rcdeploy.cli.main import app
from rcdeploy.cli.privacy import TELEMETRY_SWITCHES
from rcdeploy_runtime.errors import RcdeployError

ROOT = Path(__file__).parent.parent
run = CliRunner().invoke


def test_help_teaches_every_command() -> None:
    page = run(app, ["--help"]).output
    for command in (
        "distill",
        "build",
        "cache",
        "estimate",
        "evaluate",
        "export",
        "import",
        "generate",
        "bench",
        "report",
        "card",
        "push",
        "students",
        "sweep",
        "tune",
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


def test_check_prints_ok_or_the_resolved_recipe() -> None:
    arguments = ["recipes", "check", str(ROOT / "recipes/b_tiny.toml"), "--no-files", "--set", "train.max_steps=7"]
    first, *_ = run(app, arguments).output.splitlines()
    assert first.startswith("ok: student b-tiny") and "7 steps of" in first
    resolved = json.loads(run(app, [*arguments, "--json"]).output)
    assert resolved["train"]["max_steps"] == 7
    assert resolved["conditioning"]["probability"] == "exponential"
    assert resolved["train"]["weight_decay"] == 0.01


@pytest.mark.parametrize("recipe", [None, "c_micro"])
def test_plot_draws(tmp_path: Path, recipe: str | None) -> None:
    which = [str(ROOT / f"recipes/{recipe}.toml")] if recipe else []
    result = run(app, ["recipes", "plot", *which, "--out", str(tmp_path / "p.svg")])
    assert result.exit_code == 0
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_a_finished_run_is_left_as_it_is(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    arguments = ["distill", str(recipe_file(train={"max_steps": 2})), "--out", "runs/one"]
    first = run(app, arguments)
    assert first.exit_code == 0, first.output
    before = listing(tmp_path / "runs")
    again = run(app, arguments)
    assert again.exit_code == 0 and listing(tmp_path / "runs") == before
    for output in (first.stdout, again.stdout):
        assert "finished: 2 steps" in output and "runs/one/pipeline" in output
        for command in ("export", "report", "evaluate"):
            assert f"rcdeploy {command} runs/one" in output
    result = json.loads(run(app, [*arguments, "--json"]).stdout)
    assert result["pipeline"] == "runs/one/pipeline" and result["steps"] == 2 and "loss" in result
    assert listing(tmp_path / "runs") == before
    further = run(app, [*arguments, "--set", "train.max_steps=3", "--json"])
    assert json.loads(further.stdout)["steps"] == 3


def test_ctrl_c_reports_what_is_kept(recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rcdeploy.distill.build_run.load_teacher", interrupt)
    monkeypatch.setattr("rcdeploy.bench.latency.bench", interrupt)
    for arguments, message in (
        (["cache", str(recipe_file())], "Finished shards of latents are kept"),
        (["distill", str(recipe_file())], "written checkpoints are kept"),
        (["bench", "c-micro"], "nothing was written"),
    ):
        result = run(app, arguments)
        assert result.exit_code == 130 and message in result.stderr.replace("\n", " ")


WRONG_ARGUMENTS = (
    ["bench", "nowhere"],
    ["bench", "c-micro", "--size", "64"],
    ["cache", "nowhere.toml"],
    ["card", "nowhere"],
    ["distill", "nowhere.toml"],
    ["estimate", "nowhere.toml"],
    ["evaluate", "nowhere"],
    ["export", "nowhere"],
    ["generate", "nowhere", "a boot"],
    ["generate", "nowhere", "a boot", "-o", "image"],
    ["prompts", "build", "nowhere.txt", "--out", "pool"],
    ["push", "nowhere", "no-owner"],
    ["push", "nowhere", "house/toy"],
    ["recipes", "check", "nowhere.toml"],
    ["report", "nowhere"],
    ["students", "--teacher", "nowhere"],
    ["sweep", "nowhere.toml"],
)


@pytest.mark.parametrize("arguments", WRONG_ARGUMENTS, ids=" ".join)
def test_wrong_arguments_fail_before_anything_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rcdeploy.cli.main import main\ntry: main()\n"
        "except SystemExit as exit: assert exit.code == 2, exit.code\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("╭─ rcdeploy") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option", ["--steps=0", "--batch=0", "--sampler=none", "--height=63", "--out=image", "--guidance-scale=-1"]
)
def test_generate_checks_its_arguments_before_it_loads_networks(
    option: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcdeploy_runtime.networks.Networks.__init__", lambda *_: pytest.fail("networks were loaded"))
    result = run(app, ["generate", str(package), "a boot", option])
    assert isinstance(result.exception, RcdeployError) and not list(tmp_path.iterdir())


def test_telemetry_is_off_unless_the_user_has_set_it() -> None:
    code = (
        "import os, sys\nfrom rcdeploy.cli.main import main\nassert 'NNCF_CI' not in os.environ\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(os.environ['NNCF_CI'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in TELEMETRY_SWITCHES}
    command = [sys.executable, "-c", code, "--version"]
    done = subprocess.run(
        command, env=environment | {"HF_HUB_DISABLE_TELEMETRY": "0"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "1 0"


def test_paths_are_never_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("rcdeploy.cli.console.err.width", 60, raising=False)
    path = "/a/folder/with/" + "a-long-name/" * 8 + "recipe.toml"
    show_error(RcdeployError(f"there is no recipe {path}", fix=f"Try: rcdeploy recipes check {path}", errors=[path]))
    assert capsys.readouterr().err.count(path) == 3
    monkeypatch.setattr("rcdeploy.cli.console.out.width", 60, raising=False)
    show_table("recipes", ["recipe", "what for"], [{"recipe": path, "what for": "a test"}], as_json=False)
    assert path in capsys.readouterr().out


def test_students_of_a_built_in_teacher() -> None:
    rows = {r["name"]: r for r in json.loads(run(app, ["students", "--teacher", "sd-2.1-base", "--json"]).output)}
    assert rows["b-tiny"]["parameters"] == 326_825_604
    result = run(app, ["students", "--teacher", "sd-3"])
    assert "sd-2.1-base" in str(result.exception.fix if result.exception else result.output)


def test_students_of_a_teacher_folder(tiny_teacher: Path) -> None:
    rows = {r["name"]: r for r in json.loads(run(app, ["students", "--teacher", str(tiny_teacher), "--json"]).output)}
    assert rows["c-micro"]["parameters"] < rows["b-tiny"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["koala-1b"]["error"]
    assert "0.5" in run(app, ["students", "--teacher", str(tiny_teacher)]).output
