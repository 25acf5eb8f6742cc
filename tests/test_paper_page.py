"""docs/paper.md: its commands are understood, what they name exists, its figures are those in results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from rcdeploy.cli.main import app
from rcdeploy.recipe import SECTIONS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| in the paper")]
CODE = re.findall(r"`([^`]+)`", "\n".join(ROWS)) + [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
]
COMMANDS = [code for code in CODE if re.match(r"(rcdeploy|python|accelerate) ", code)]
PARTS = [
    *(f"Table {x}" for x in "1234ABCDEFG"),
    *(f"Fig. {x}" for x in "1234567A"),
    *("Fig. B and C", "equation 3", "Section L, M"),
    *(f"Section {x}" for x in ["3.2", "3.3", "4.1", "4.2", *"ABCDEFGHIJK"]),
]


def parse(line: str) -> None:
    """Raises ValueError for an rcdeploy command that does not exist, a usage error for one that is not understood."""
    words = shlex.split(line)
    words = words[words.index("rcdeploy.cli.main") + 1 :] if words[0] == "accelerate" else words[1:]
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):  # a group alone does nothing
        raise ValueError(f"No such command: {line}")
    command.make_context("rcdeploy", words)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("line", sorted({c for c in COMMANDS if not c.startswith("python")}))
def test_every_command_is_understood(line: str) -> None:
    parse(line)
    for setting in re.findall(r"--set (\S+)=", line):
        section, _, key = setting.partition(".")
        assert key in SECTIONS[section].model_fields, f"{setting} is no key of a recipe"


@pytest.mark.parametrize(
    "line", ["rcdeploy no-such-command", "rcdeploy distill", "rcdeploy sweep a.toml --no-such-option"]
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match="No such|Missing|unexpected"):  # click's, or typer's own copy of it
        parse(line)


def test_files_of_the_repository_that_it_names_exist() -> None:
    named = {word for code in CODE for word in code.split() if re.match(r"(recipes|examples|docs|benchmarks)/", word)}
    assert len(named) > 12
    assert not [word for word in named if not (ROOT / word).exists()]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_paper_has_a_row(part: str) -> None:
    assert any(part in row.split("|")[1] for row in ROWS)


def test_every_row_has_five_cells_and_says_what_came_out() -> None:
    for row in ROWS:
        assert row.count("|") == 6, row
        assert row.split("|")[4].strip(), f"nothing came out here: {row}"


def test_its_figures_are_those_in_results() -> None:
    results = " ".join(file.read_text(encoding="utf-8") for file in (ROOT / "results").glob("*.md"))
    outcomes = [row.split("|")[4] for row in ROWS]
    figures = {figure for outcome in outcomes for figure in re.findall(r"\d+\.\d+", outcome)} - {"0.5", "3.3"}
    assert len(figures) > 15
    assert not {figure for figure in figures if figure not in results}
