"""The table of a sweep: means, spreads, the paper's values, earlier tables, plots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import SCORE, SWEEP, silent
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.sweep.comparison import compare, differing
from rcdeploy.sweep.metric_format import with_spread
from rcdeploy.sweep.plan import Plan, load_plan
from rcdeploy.sweep.run_trial import run_trial
from rcdeploy.sweep.scores import TrialScores
from rcdeploy.sweep.table import collect, markdown, write
from rcdeploy.sweep.trial import Trial
from rcdeploy_runtime.errors import RcdeployError


def test_means_spreads_and_missing_trials(finished: Plan, tmp_path: Path) -> None:
    values = {
        finished.teacher.key: 1.0,
        finished.variants[0].trials[0].key: 0.25,
        finished.variants[1].trials[0].key: 0.5,
    }

    def score(trial: Trial) -> dict[str, float]:
        return {"all item": values[trial.key], "all frechet distance": 10 * values[trial.key]}

    result = collect(finished, score)
    text = markdown(finished, result, "rcdeploy sweep table.toml")
    assert "|  | all item, % | all frechet distance ↓ | paper: FID |" in text
    assert "| without | 25.0 | 2.50 | 2.50 |" in text
    assert "| with | 50.0 | 5.00 |  |" in text
    assert "`rcdeploy sweep table.toml`" in text
    assert finished.sweep.note in text
    assert "not done" not in text
    files = write(finished, result, tmp_path / "results", "rcdeploy sweep table.toml")
    assert [f.name for f in files] == ["table.json", "table.md", "table.png"]
    assert all(f.stat().st_size for f in files)
    assert str(tmp_path) not in files[0].read_text()

    two_seeds = load_plan(tmp_path / "table.toml", overrides=[])
    Path("table.toml").write_text(Path("table.toml").read_text().replace("seeds = [0]", "seeds = [0, 1]"))
    two_seeds = load_plan(tmp_path / "table.toml")
    text = markdown(two_seeds, collect(two_seeds, score), "")
    assert "**2 of 5 trials are not done.**" in text
    two_seeds.variants[1].trials[1].folder.parent.mkdir(exist_ok=True)
    first, second = two_seeds.variants[1].trials
    shutil.copytree(first.folder, second.folder)
    (second.folder / two_seeds.evaluation_folder(first).name).rename(two_seeds.evaluation_folder(second))
    values[two_seeds.variants[1].trials[1].key] = 0.7
    text = markdown(two_seeds, collect(two_seeds, score), "")
    assert "| with | 60.0 (50 to 70) | 6.00 (5.00 to 7.00) |  |" in text


def test_trials_of_an_earlier_table_are_not_run_again(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    one_seed, run = SWEEP.replace("[0, 1]", "[0]"), CliRunner().invoke
    plan = load_plan(sweep_file(one_seed, train={"max_steps": 2}))
    for trial in plan.trials:
        run_trial(plan, trial, silent, silent)
    assert run(app, ["sweep", "table.toml", "--only-table"]).exit_code == 0
    shutil.rmtree("runs")  # a fresh clone has the table and no runs
    table = tmp_path / "results/table.json"
    before = json.loads(table.read_text())

    sweep_file(train={"max_steps": 2})
    listed = run(app, ["sweep", "table.toml", "--known", str(table), "--dry-run", "--json"]).output
    assert [row["state"] for row in json.loads(listed)] == ["known"] * 3 + ["not begun"] * 2
    assert "4 steps;" in run(app, ["sweep", "table.toml", "--known", str(table), "--dry-run"]).output
    wider = load_plan(tmp_path / "table.toml", known=[table])
    assert [trial.seed for trial in wider.to_run] == [1, 1]
    run_trial(wider, wider.to_run[0], silent, silent)
    assert run(app, ["sweep", "table.toml", "--known", str(table), "--only-table"]).exit_code == 0
    after = json.loads(table.read_text())
    assert [len(row["cells"]) for row in after["lines"]] == [1, 2, 1]
    assert [row["cells"][0] for row in after["lines"]] == [row["cells"][0] for row in before["lines"]]

    (tmp_path / "score.toml").write_text(SCORE.replace("count = 12", "count = 11"))
    with pytest.raises(RcdeployError, match="was scored differently"):
        load_plan(tmp_path / "table.toml", known=[table])
    table.write_text('{"lines": []}')
    with pytest.raises(RcdeployError, match="is no table of rcdeploy sweep"):
        load_plan(tmp_path / "table.toml", known=[table])
    assert str(run(app, ["sweep", "table.toml", "--known", "gone.json"]).exception) == "gone.json is missing"


def test_values_have_as_many_digits_as_the_papers() -> None:
    assert with_spread("unseen item", 0.25, 0.2, 0.3) == "25.0 (20 to 30)"
    assert with_spread("all frechet distance", 16.625, 16.5, 16.75) == "16.62 (16.50 to 16.75)"
    assert with_spread("all clip", 0.28644, 0.28638, 0.2865) == "0.2864 (0.2864 to 0.2865)"
    assert with_spread("seen vqa", 0.35991, 0.35991, 0.35991) == "0.3599"
    assert with_spread("all is", 36.03, 36.03, 36.03) == "36.03"


def test_curves_over_a_number(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    text = SWEEP.replace("[0, 1]", "[0]").split("[paper]")[0].replace("title =", 'x = "prompts.paired_count"\ntitle =')
    plan = load_plan(sweep_file(text + '[grid]\n"prompts.paired_count" = [4, 8]\n'))
    metrics = {"all item": {"mean": 0.5, "lowest": 0.4, "highest": 0.7}}
    rows = [
        {"label": label, "set": keys, "cells": [], "missing": 0, "figures": metrics}
        for label, keys in [("teacher", {}), *((variant.label, variant.set) for variant in plan.variants)]
    ]
    files = write(plan, {"lines": rows}, tmp_path / "results", "")
    assert files[2].stat().st_size > 1000
    with pytest.raises(RcdeployError, match="no key of the grid with numbers"):
        load_plan(sweep_file(text + '[grid]\n"student.init" = ["random"]\n'))


def test_the_tests_stand_in_the_table(sweep_file: Callable[..., Path]) -> None:
    """Random students of two seeds: every value is tested, and what differs is marked."""
    plan = load_plan(sweep_file(train={"max_steps": 1}))
    for trial in plan.trials:
        run_trial(plan, trial, silent, silent)
    scores = TrialScores(plan)
    comparison = compare(plan, scores)
    assert comparison is not None and comparison["baseline"] == "without"
    (row,) = comparison["lines"]
    assert row["label"] == "with" and row["seeds"] == 2
    names = {f"{part} {metric}" for part in ("all", "shoes") for metric in ("item", "colour", "all")}
    assert set(row["figures"]) == names and all(0 <= entry["p"] <= 1 for entry in row["figures"].values())
    result = collect(plan, scores, comparison)
    without, with_it = (line["figures"] for line in result["lines"][1:])
    differences = {name: with_it[name]["mean"] - without[name]["mean"] for name in names}
    assert {name: entry["difference"] for name, entry in row["figures"].items()} == pytest.approx(differences, abs=1e-4)
    row["figures"]["all item"]["p"] = 0.01
    text = markdown(plan, result, "")
    assert text.count(" ✱ |") == 1 and 'differs from "without" (p < 0.05, Holm)' in text and "of 2 seeds" in text


def test_seeds_of_an_earlier_table_have_the_t_test_alone(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    """No images: a variant whose seeds agree is marked apart, one whose seeds do not is not marked."""
    plan = load_plan(sweep_file())
    without, with_it = plan.variants
    for variant, items, colours in ((without, (0.2, 0.3), (0.5, 0.5)), (with_it, (0.4, 0.5001), (0.4, 0.9))):
        for trial, item, colour in zip(variant.trials, items, colours, strict=True):
            scores = {"all item": item, "all colour": colour}
            plan.known[trial.key] = {"seed": trial.seed, "key": trial.key, "train_minutes": 1.0, "scores": scores}
    comparison = compare(plan, TrialScores(plan))
    assert comparison is not None
    (row,) = comparison["lines"]
    assert row["by_caption"] is False and row["seeds"] == 2
    assert row["figures"]["all item"]["p"] < 0.05 < row["figures"]["all colour"]["p"]
    assert differing(comparison) == set() and differing(comparison, by_caption=False) == {("with", "all item")}
    text = markdown(plan, collect(plan, lambda trial: {}, comparison), "")
    assert text.count(" † |") == 1 and " ✱" not in text and "the images of these trials are not here" in text


def test_one_seed_is_not_tested(finished: Plan) -> None:
    assert compare(finished, TrialScores(finished)) is None
