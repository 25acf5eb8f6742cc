"""Launch lines of docs and recipes: accelerate parses them, the command behind them exists, the batch divides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from accelerate.commands.launch import launch_command_parser

from rcdeploy.cli.main import app
from rcdeploy.distill.build_run import accumulation_steps
from rcdeploy.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "recipes").rglob("*.toml"))]


def launch_lines(page: Path) -> list[str]:
    """Every `accelerate launch ...` of a page, without the marks around it."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    return [line.strip() for line in re.findall(r"accelerate launch (--[^`\n#]*distill [^`\n#]*)", text)]


LINES = [pytest.param(line, id=f"{page.stem}-{n}") for page in PAGES for n, line in enumerate(launch_lines(page))]


@pytest.mark.parametrize("line", LINES)
def test_a_launch_line_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = launch_command_parser().parse_args(shlex.split(line))
    assert args.module and args.training_script == "rcdeploy.cli.main"
    name, *rest = args.training_script_args
    commands = typer.main.get_command(app)
    context = commands.make_context("rcdeploy", [name, *rest], resilient_parsing=True)
    command = commands.get_command(context, name)  # type: ignore[attr-defined]
    assert command is not None
    parsed = command.make_context(name, list(rest), parent=context)
    recipe = ROOT / parsed.params["recipe"]
    if recipe.is_file():  # others stand for the reader's own
        train = load_recipe(recipe, list(parsed.params["override"]), check_files=False).train
        assert accumulation_steps(train, args.num_processes) >= 1
    if args.num_machines and args.num_machines > 1:
        assert args.num_processes % args.num_machines == 0 and args.main_process_ip and args.main_process_port


def test_the_page_has_lines_for_all_its_hardware() -> None:
    launched = [launch_command_parser().parse_args(shlex.split(x)) for x in launch_lines(ROOT / "docs/scale.md")]
    assert sorted((args.num_machines or 1, args.num_processes) for args in launched) == [(1, 4), (1, 8), (2, 16)]
