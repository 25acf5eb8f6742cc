"""Students by budget: limits, candidates, the choice, and the recipe that is written for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rcdeploy.bench import budget
from rcdeploy.bench.budget import Budget, Candidate, candidates, choose, front, recipe_of
from rcdeploy.cli.main import app
from rcdeploy.model_config import read_unet_config
from rcdeploy.recipe_file import load_recipe
from rcdeploy.student.spec import STUDENTS
from rcdeploy_runtime.errors import RcdeployError

COUNTED: dict[str, list[Candidate]] = {}


@pytest.fixture(autouse=True)
def few_students(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a third of a second a student; the command counts the same ones whenever it is called."""
    names = ("b-tiny", "c-base", "c-small", "koala-1b")
    monkeypatch.setattr(budget, "STUDENTS", {name: STUDENTS[name] for name in names})
    monkeypatch.setattr(budget, "WIDTHS", (0.6, 0.8))
    monkeypatch.setattr(budget, "candidates", counted_once)


def counted_once(*arguments: Any) -> list[Candidate]:
    key = repr(arguments)
    if key not in COUNTED:
        COUNTED[key] = candidates(*arguments)
    return COUNTED[key]


def run(arguments: list[str]) -> Result:
    return CliRunner().invoke(app, arguments)


def candidate(name: str, parameters: int, *milliseconds: float) -> Candidate:
    return Candidate(
        name, (f"student.name={name}",), {}, parameters, 10 * parameters, tuple(m / 1000 for m in milliseconds)
    )


def test_limits_are_read() -> None:
    limits = Budget.parse("unet_ms<=40, mb < 0.5")
    assert limits.limits == {"unet_ms": 40, "mb": 0.5} and limits.is_timed
    assert limits.text == "unet_ms <= 40, mb <= 0.5"
    assert not Budget.parse("gmacs<=3").is_timed
    for wrong in ("", "40", "ms<=40", "mb>=3", "mb<=0", "mb<=-1", "mb<=3,mb<=4", "mb<=1e400", "mb<=" + "9" * 5000):
        with pytest.raises(RcdeployError, match="is no limit, or the second of its name"):
            Budget.parse(wrong)


def test_the_largest_within_the_limits_is_chosen() -> None:
    slow, large, small = (
        candidate("slow", 4_000_000, 50, 60, 55),
        candidate("large", 3_000_000, 30, 90, 39),
        candidate("small", 1_000_000, 5, 5, 5),
    )
    every = [slow, large, small]
    assert choose(every, Budget({"unet_ms": 40})) is large, "by the median"
    assert choose(every, Budget({"unet_ms": 40, "mb": 2})) is small
    assert choose(every, Budget({"gmacs": 100})) is slow
    with pytest.raises(RcdeployError, match="keeps the budget[\\s\\S]*unet_ms 5, mb 2"):
        choose(every, Budget({"unet_ms": 4, "mb": 1}))
    beaten = candidate("beaten", 2_000_000, 39)
    assert front([*every, beaten]) == {"slow", "large", "small"}
    assert front([replace(c, seconds=()) for c in every]) == {"slow", "large", "small"}


def test_candidates_are_the_students_and_further_widths(tiny_teacher: Path) -> None:
    found = counted_once(read_unet_config(tiny_teacher), None, 16)
    by_name = {c.name: c for c in found}
    assert {"b-tiny", "c-base"} <= by_name.keys() and "koala-1b" not in by_name
    assert "width 0.8" not in by_name, "that is c-base"
    narrow = by_name["b-tiny, width 0.5"]
    assert narrow.parameters < by_name["b-tiny"].parameters and "c-base, width 0.5" not in by_name
    assert all(c.costs["mb"] == c.parameters * 2 / 1e6 and c.costs["unet_ms"] is None for c in found)
    assert [c.parameters for c in found] == sorted((c.parameters for c in found), reverse=True)


def test_the_command_times_chooses_and_writes_a_recipe(
    tiny_teacher: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file(student={"name": "c-small", "seed": 3})
    arguments = ["students", "--teacher", str(tiny_teacher), "--runs", "1", "--budget"]
    sizes = {c.name: c.costs["mb"] for c in counted_once(read_unet_config(tiny_teacher), None, 16)}
    limit = f"unet_ms<=60000,mb<={sizes['b-tiny'] * 1.01:.6f}"
    mine, plot = recipe.parent / "mine.toml", tmp_path / "plot.svg"
    writing = ["--recipe", str(recipe), "--write", str(mine), "--plot", str(plot)]
    result = run([*arguments, limit, *writing, "--json"])
    assert result.exit_code == 0, getattr(result.exception, "errors", result.output)
    rows = json.loads(result.stdout)
    (chosen,) = (row for row in rows if row["chosen"])
    assert all(row["mb"] <= sizes["b-tiny"] * 1.01 and len(row["seconds"]) == 1 for row in rows)
    assert chosen["parameters"] == max(row["parameters"] for row in rows)
    assert load_recipe(mine).student == load_recipe(recipe, chosen["settings"]).student
    assert plot.read_text().startswith("<?xml")
    assert "largest within the limits" in run([*arguments, "mb<=1"]).output
    before = mine.read_bytes()
    for more, message in (
        (["mb<=1", *writing], "exists"),
        (["mb<=1", "--recipe", str(recipe), "--write", str(tmp_path / "elsewhere" / "x.toml")], "is not beside"),
        (["mb<=1", "--write", "x.toml"], "go together"),
        (["mb<=1", "--plot", "x.jpg"], "must end in"),
        (["mb<=0.0001"], "keeps the budget"),
        (["unet_ms<=60000,mb<=0.0001"], "The least that any takes: mb 0.0"),
        (["mb<=1", "--latent-size", "big"], "--latent-size"),
    ):
        result = run([*arguments, *more])
        assert isinstance(result.exception, RcdeployError) and message in str(result.exception)
    assert isinstance(run(["students", "--plot", "x.png"]).exception, RcdeployError)
    assert mine.read_bytes() == before


def test_the_rest_of_a_recipe_stays_as_it_is() -> None:
    text = '# head\n[teacher]\nname = "t"\n[student]  # small\nname = "b-tiny"\ninit = "random"\n\n[cache]\nname = 1\n'
    new = recipe_of(text, Candidate("width 0.3", ("student.width=0.3",), {}, 1, 1))
    assert new == text.replace('name = "b-tiny"', "width = 0.3")
    layers = text.replace("init =", "layers = [\n  2,  # outermost\n  1,\n]  # inner\ninit =")
    assert recipe_of(layers, Candidate("width 0.3", ("student.width=0.3",), {}, 1, 1)) == new
    both = Candidate("b-base, width 0.5", ("student.name=b-base", "student.width=0.5"), {}, 1, 1)
    assert recipe_of(text, both) == text.replace('name = "b-tiny"', 'name = "b-base"\nwidth = 0.5')
    with pytest.raises(RcdeployError, match=r"no \[student\] table"):
        recipe_of("[teacher]\n", candidate("b-tiny", 1))
