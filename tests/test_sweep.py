"""Sweeps: what a sweep file may say, cells that are shared, cells side by side, the table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COLOURS, THINGS
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.evaluate.frechet import Statistics
from rcdeploy.evaluate.judge import Judge
from rcdeploy.storage.claims import Claim
from rcdeploy.sweep.cell import Scores, asked, make
from rcdeploy.sweep.figures import with_spread
from rcdeploy.sweep.plan import Cell, Plan, load_plan
from rcdeploy.sweep.table import collect, markdown, write
from rcdeploy.sweep.work import BUSY, Interrupted, Work, environment
from rcdeploy_runtime.errors import RcdeployError

ROOT = Path(__file__).parent.parent
SWEEP = """
title = "a table"
recipe = "tiny.toml"
score = "score.toml"
seeds = [0, 1]
note = "Anything: the teacher is random."

[[rows]]
name = "without"
set = { "conditioning.probability" = "none" }

[[rows]]
name = "with"

[paper]
source = "nowhere"
columns = ["FID"]
rows = { "without" = [2.5] }
"""
SCORE = """
captions = ["further.txt"]
count = 12
num_inference_steps = 2
batch_size = 5
shard_size = 8
judge = "judge"

[prompts.all]

[prompts.shoes]
include = ["shoes?"]
"""


@pytest.fixture
def sweep_file(tmp_path: Path, recipe_file: Callable[..., Path]) -> Callable[..., Path]:
    """Writes tmp_path/NAME.toml with its recipe, score file and judge. recipe: overrides of the tiny recipe."""

    def written(text: str = SWEEP, name: str = "table", score: str = SCORE, **recipe: Any) -> Path:
        recipe_file(**recipe)
        attributes: Any = {
            "item": {"labels": list(THINGS), "pattern": f"({'|'.join(THINGS)})"},
            "colour": {"labels": list(COLOURS), "pattern": f"({'|'.join(COLOURS)})"},
        }
        torch.manual_seed(0)
        Judge(attributes, width=4).save(tmp_path / "judge")
        (tmp_path / "score.toml").write_text(score)
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        return file

    return written


def quiet(*_: Any) -> None:
    """Progress and remarks that nobody reads."""


def test_rows_grid_and_seeds_make_cells(sweep_file: Callable[..., Path]) -> None:
    text = SWEEP.replace('rows = { "without"', 'rows = { "without, random"')
    plan = load_plan(sweep_file(text + '\n[grid]\n"student.init" = ["random", "sliced"]\n'))
    assert [line.label for line in plan.lines] == ["without, random", "without, sliced", "with, random", "with, sliced"]
    assert len({cell.key for cell in plan.cells}) == 9  # the teacher too
    assert not plan.cells[0].trained
    cell = plan.lines[1].cells[1]
    assert (cell.recipe.student.init, cell.recipe.train.seed, cell.recipe.student.seed) == ("sliced", 1, 1)
    assert cell.recipe.cache.seed == 0
    assert cell.folder == Path(f"runs/sweeps/tiny-{cell.key[:8]}")
    assert plan.cell(cell.key) is plan.cell(cell.key[:8]) is cell
    with pytest.raises(RcdeployError, match="has no cell nothing"):
        plan.cell("nothing")


def test_a_label_names_what_a_number_is_of(sweep_file: Callable[..., Path]) -> None:
    text = SWEEP.split("[[rows]]")[0] + '[grid]\n"prompts.paired_count" = [4, 8]\n'
    assert [line.label for line in load_plan(sweep_file(text)).lines] == ["paired count 4", "paired count 8"]


def test_tables_share_cells_and_a_tree_that_moves_keeps_them(
    sweep_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_plan(sweep_file())
    other = load_plan(sweep_file(SWEEP.replace('"with"', '"as always"').replace("[0, 1]", "[1]"), "other"))
    assert other.lines[1].cells[0].key == plan.lines[1].cells[1].key
    keys = [c.key for c in plan.cells]
    same = ["train.log_every=3", "train.max_steps=6", "evaluate.seed=5"]  # 6 as before; the others change no weight
    assert [c.key for c in load_plan(sweep_file(), overrides=same).cells] == keys
    longer = load_plan(sweep_file(), overrides=["train.max_steps=7"])
    assert {c.key for c in longer.cells} & set(keys) == {plan.teacher.key}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("table.toml", "tiny.toml", "score.toml", "paired.txt", "further.txt"):
        shutil.copy(name, moved)
    shutil.copytree("judge", moved / "judge")
    found = []
    for place in (Path.cwd(), moved):
        shutil.copytree(plan.teacher.recipe.teacher.path, place / "tiny")
        monkeypatch.chdir(place)
        found.append([c.key for c in load_plan(Path("table.toml"), overrides=["teacher.path=tiny"]).cells])
    assert found[0] == found[1]


def test_another_recipe_and_overrides_come_under_a_lines_own_keys(
    sweep_file: Callable[..., Path], recipe_file: Callable[..., Path]
) -> None:
    file, another = sweep_file(), recipe_file("another", train={"max_steps": 3})
    plan = load_plan(file, recipe=another, overrides=["conditioning.probability=linear"])
    assert [line.cells[0].recipe.conditioning.probability for line in plan.lines] == ["none", "linear"]
    assert {c.recipe.train.max_steps for c in plan.cells} == {3}
    assert plan.lines[0].cells[0].folder.name.startswith("another-")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds =", "seedz ="), ["seedz: no such key; did you mean 'seeds'?"]),
        (('title = "a table"', ""), ["title: this key is needed"]),
        (("[0, 1]", "[1, 1]"), ["seeds: [1, 1] has one twice"]),
        (("conditioning.probability", "conditioning.probabilty"), ["no such key; did you mean 'probability'?"]),
        (("conditioning.probability", "train.seed"), ["rows, without: train.seed is set by `seeds`"]),
        (('name = "with"', 'name = "without"'), ["two are named 'without'"]),
        (('"without" = [2.5]', '"withuot" = [2.5, 1]'), ["withuot: 2 figures for 1 columns"]),
        (('"without" = [2.5]', '"withuot" = [2.5]'), ["no line is called 'withuot'"]),
        (("tiny.toml", "tinny.toml"), ["did you mean", "tiny.toml"]),
        (("score.toml", "scores.toml"), ["there is no score file", "score.toml"]),
        (('title = "a table"', "title = a table"), ["cannot be read as TOML"]),
    ],
)
def test_what_is_wrong_is_said(sweep_file: Callable[..., Path], change: tuple[str, str], said: list[str]) -> None:
    assert change[0] in SWEEP
    with pytest.raises(RcdeployError) as raised:
        load_plan(sweep_file(SWEEP.replace(*change)))
    assert all(words in str(raised.value) for words in said), str(raised.value)


def test_everything_wrong_is_said_at_once(sweep_file: Callable[..., Path]) -> None:
    rows = '[[rows]]\nname = "{}"\nset = {{ "{}" = {} }}\n'
    wrong = rows.format("a", "train.max_stepz", 1) + rows.format("b", "loss.feature", -1) + rows.format("c", "nn.x", 1)
    with pytest.raises(RcdeployError, match="has 3 errors") as raised:
        load_plan(sweep_file(SWEEP.split("[[rows]]")[0] + wrong))
    assert "'max_steps'" in str(raised.value)
    assert "loss.feature" in str(raised.value)
    assert "no section 'nn'" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("further.txt", "nothing.txt"), "nothing.txt is not there"),
        (('"judge"\n', '"nobody"\n'), "nobody is not there"),
        (("count = 12", "count = 0"), "count: "),
        (("count = 12", 'count = 12\nshow = ["al item"]'), "'al item' begins with none of the parts all, shoes"),
        (("shoes?", "shoes("), "is no regular expression"),
    ],
)
def test_what_is_wrong_in_a_score_file_is_said(
    sweep_file: Callable[..., Path], change: tuple[str, str], said: str
) -> None:
    assert change[0] in SCORE
    with pytest.raises(RcdeployError) as raised:
        load_plan(sweep_file(score=SCORE.replace(*change)))
    assert said in str(raised.value)


def test_the_shipped_tables_are_whole(tmp_path: Path) -> None:
    """Every one of recipes/tables, with what examples/table_data.py would make."""
    tables = tmp_path / "recipes/tables"
    shutil.copytree(ROOT / "recipes/tables", tables)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("real_pictures", "pool_paired", "pool_eighth", "pool_half", "pool_unseen"):
        (tmp_path / "build/tables" / name).mkdir(parents=True)
    (tmp_path / "build/tables/templates.txt").touch()
    plans = {f.stem: load_plan(f) for f in sorted(tables.glob("*.toml")) if f.stem not in ("fashion", "judge")}
    assert {"table_1", "table_2", "table_3", "table_b", "table_c", "table_e", "fig_7"} <= set(plans)
    shared = {cell.key for cell in plans["table_c"].cells}
    for name in ("table_1", "table_2", "table_b", "table_e", "fig_7"):
        assert len({cell.key for cell in plans[name].cells} & shared) >= 1 + 2 * 2, name  # the teacher, two lines
        assert plans[name].scoring == plans["table_c"].scoring


@pytest.fixture
def made(sweep_file: Callable[..., Path]) -> Plan:
    """A sweep of one seed, every cell made in this process."""
    plan = load_plan(sweep_file(SWEEP.replace("[0, 1]", "[0]"), train={"max_steps": 2}))
    for cell in plan.cells:
        assert make(plan, cell, quiet, quiet)
    return plan


def test_cells_are_made_once_and_scored(made: Plan, tmp_path: Path) -> None:
    assert all(made.is_done(cell) for cell in made.cells)
    times = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    for cell in made.cells:
        make(made, cell, quiet, quiet)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == times
    assert not list(tmp_path.rglob("*.claim"))

    scores = Scores(made)
    assert len(asked(made)) == len(scores.parts["all"]) == 12
    assert [p for p, chosen in zip(scores.prompts, scores.parts["shoes"], strict=True) if chosen] == [
        p for p in scores.prompts if "shoe" in p
    ]
    found = {cell.key: scores(cell) for cell in made.cells}
    names = ("item", "colour", "all", "inception score")
    for values in found.values():
        assert set(values) == {f"{part} {name}" for part in ("all", "shoes") for name in names}
        assert all(0 <= value <= 1 for name, value in values.items() if "inception" not in name)


def test_a_reference_needs_no_new_pictures(made: Plan, tmp_path: Path) -> None:
    Statistics.of(torch.rand(40, 16)).save(tmp_path / "judge/reference.safetensors")
    few = load_plan(tmp_path / "table.toml")
    assert all(few.is_done(cell) for cell in few.cells)
    assert "all frechet distance" not in Scores(few)(few.cells[0])  # 12 pictures of 16 features
    (tmp_path / "score.toml").write_text("allow_few = true\n" + SCORE)
    plan = load_plan(tmp_path / "table.toml")
    assert all(plan.is_done(cell) for cell in plan.cells)
    assert Scores(plan)(plan.cells[0])["all frechet distance"] > 0


def test_pictures_may_be_thrown_away(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    plan = load_plan(sweep_file(score="keep_pictures = false\n" + SCORE))
    make(plan, plan.teacher, quiet, quiet)
    assert plan.is_done(plan.teacher)
    assert not list(tmp_path.rglob("pictures-*"))
    assert Scores(plan)(plan.teacher)


def test_weights_that_are_missing_are_said_before_anything_is_made(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = sweep_file(score=SCORE.replace("batch_size", 'metrics = ["judge", "clip"]\nbatch_size'))
    found = CliRunner().invoke(app, ["sweep", str(file)])
    assert isinstance(found.exception, RcdeployError)
    assert "clip needs a CLIP model" in str(found.exception)
    (tmp_path / "score.toml").write_text(
        SCORE.replace("batch_size", 'metrics = ["vqa"]\nvqa = "judge"\nbatch_size')  # spaCy's pipeline is no package
    )
    found = CliRunner().invoke(app, ["sweep", str(file)])
    assert isinstance(found.exception, RcdeployError)
    assert "spacy download en_core_web_sm" in str(found.exception.fix) or "compbench" in str(found.exception.fix)
    assert not (tmp_path / "runs").exists()


def test_a_cell_that_somebody_is_at_is_left_alone(sweep_file: Callable[..., Path]) -> None:
    plan = load_plan(sweep_file())
    cell = plan.cells[1]
    cell.folder.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        Claim(cell.folder).path.write_text(json.dumps({"host": os.uname().nodename, "pid": other.pid}))
        assert not make(plan, cell, quiet, quiet)
        other.kill()
    assert not cell.folder.exists()


def test_the_table_says_means_spreads_and_what_is_missing(made: Plan, tmp_path: Path) -> None:
    values = {made.teacher.key: 1.0, made.lines[0].cells[0].key: 0.25, made.lines[1].cells[0].key: 0.5}

    def score(cell: Cell) -> dict[str, float]:
        return {"all item": values[cell.key], "all frechet distance": 10 * values[cell.key]}

    result = collect(made, score)
    text = markdown(made, result, "rcdeploy sweep table.toml")
    assert "|  | all item, % | all frechet distance ↓ | paper: FID |" in text
    assert "| without | 25.0 | 2.50 | 2.50 |" in text
    assert "| with | 50.0 | 5.00 |  |" in text
    assert "`rcdeploy sweep table.toml`" in text
    assert made.spec.note in text
    assert "not done" not in text
    files = write(made, result, tmp_path / "results", "rcdeploy sweep table.toml")
    assert [f.name for f in files] == ["table.json", "table.md", "table.png"]
    assert all(f.stat().st_size for f in files)
    assert str(tmp_path) not in files[0].read_text()

    two_seeds = load_plan(tmp_path / "table.toml", overrides=[])
    Path("table.toml").write_text(Path("table.toml").read_text().replace("seeds = [0]", "seeds = [0, 1]"))
    two_seeds = load_plan(tmp_path / "table.toml")
    text = markdown(two_seeds, collect(two_seeds, score), "")
    assert "**2 of 5 cells are not done.**" in text
    two_seeds.lines[1].cells[1].folder.parent.mkdir(exist_ok=True)
    shutil.copytree(two_seeds.lines[1].cells[0].folder, two_seeds.lines[1].cells[1].folder)
    values[two_seeds.lines[1].cells[1].key] = 0.7
    text = markdown(two_seeds, collect(two_seeds, score), "")
    assert "| with | 60.0 (50 to 70) | 6.00 (5.00 to 7.00) |  |" in text


def test_what_another_table_has_is_not_made_again(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    one_seed, run = SWEEP.replace("[0, 1]", "[0]"), CliRunner().invoke
    plan = load_plan(sweep_file(one_seed, train={"max_steps": 2}))
    for cell in plan.cells:
        make(plan, cell, quiet, quiet)
    assert run(app, ["sweep", "table.toml", "--only-table"]).exit_code == 0
    shutil.rmtree("runs")  # a fresh clone has the table and no runs
    table = tmp_path / "results/table.json"
    before = json.loads(table.read_text())

    sweep_file(train={"max_steps": 2})
    listed = run(app, ["sweep", "table.toml", "--known", str(table), "--dry-run", "--json"]).output
    assert [row["state"] for row in json.loads(listed)] == ["known"] * 3 + ["waits"] * 2
    assert "4 steps;" in run(app, ["sweep", "table.toml", "--known", str(table), "--dry-run"]).output
    wider = load_plan(tmp_path / "table.toml", known=[table])
    assert [cell.seed for cell in wider.to_make] == [1, 1]
    make(wider, wider.to_make[0], quiet, quiet)
    assert run(app, ["sweep", "table.toml", "--known", str(table), "--only-table"]).exit_code == 0
    after = json.loads(table.read_text())
    assert [len(line["cells"]) for line in after["lines"]] == [1, 2, 1]
    assert [line["cells"][0] for line in after["lines"]] == [line["cells"][0] for line in before["lines"]]

    (tmp_path / "score.toml").write_text(SCORE.replace("count = 12", "count = 11"))
    with pytest.raises(RcdeployError, match="was scored in another way"):
        load_plan(tmp_path / "table.toml", known=[table])
    table.write_text('{"lines": []}')
    with pytest.raises(RcdeployError, match="is no table of rcdeploy sweep"):
        load_plan(tmp_path / "table.toml", known=[table])
    assert str(run(app, ["sweep", "table.toml", "--known", "gone.json"]).exception) == "gone.json is missing"


def test_figures_are_told_as_precisely_as_the_paper_tells_them() -> None:
    assert with_spread("unseen item", 0.25, 0.2, 0.3) == "25.0 (20 to 30)"
    assert with_spread("all frechet distance", 16.625, 16.5, 16.75) == "16.62 (16.50 to 16.75)"
    assert with_spread("all clip", 0.28644, 0.28638, 0.2865) == "0.2864 (0.2864 to 0.2865)"
    assert with_spread("seen vqa", 0.35991, 0.35991, 0.35991) == "0.3599"
    assert with_spread("all is", 36.03, 36.03, 36.03) == "36.03"


def test_curves_over_a_number(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    text = SWEEP.replace("[0, 1]", "[0]").split("[paper]")[0].replace("title =", 'x = "prompts.paired_count"\ntitle =')
    plan = load_plan(sweep_file(text + '[grid]\n"prompts.paired_count" = [4, 8]\n'))
    figures = {"all item": {"mean": 0.5, "lowest": 0.4, "highest": 0.7}}
    lines = [
        {"label": label, "set": keys, "cells": [], "missing": 0, "figures": figures}
        for label, keys in [("teacher", {}), *((line.label, line.set) for line in plan.lines)]
    ]
    files = write(plan, {"lines": lines}, tmp_path / "results", "")
    assert files[2].stat().st_size > 1000
    with pytest.raises(RcdeployError, match="no key of the grid with numbers"):
        load_plan(sweep_file(text + '[grid]\n"student.init" = ["random"]\n'))


def cells_of(plan: Plan, count: int) -> list[Cell]:
    assert len(plan.cells) >= count
    return plan.cells[:count]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_failed_cell_stops_no_other(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    cells = cells_of(load_plan(sweep_file()), 4)
    panel = "print('something before'); print('╭─ rcdeploy ──╮\\n│ it broke │\\n╰──╯'); raise SystemExit(2)"
    codes = [f"open({str(tmp_path / c.key)!r}, 'w')" for c in cells]
    codes[1], codes[2] = panel, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    start = dict(zip([c.key for c in cells], codes, strict=True))
    ended: list[tuple[str, str | None]] = []
    work = Work(cells, lambda c: python(start[c.key]), lambda c: (tmp_path / c.key).exists(), 2,
                lambda c, _seconds, failure: ended.append((c.key, failure)))  # fmt: skip
    failures = work.run()
    assert failures == {cells[1].key: "it broke", cells[2].key: "killed by signal 9, without a word"}
    assert (tmp_path / cells[0].key).exists()
    assert (tmp_path / cells[3].key).exists()
    assert len(ended) == 4
    again = Work(
        cells, lambda c: python(f"open({str(tmp_path / c.key)!r}, 'w')"), lambda c: (tmp_path / c.key).exists()
    )
    assert again.run() == {}


def test_a_cell_that_was_busy_is_tried_again(
    sweep_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcdeploy.sweep.work.LOOK_AGAIN_SECONDS", 0.1)
    (cell,) = cells_of(load_plan(sweep_file()), 1)
    mark = tmp_path / "tried"
    code = (
        f"import pathlib as p, sys; m = p.Path({str(mark)!r}); n = m.exists(); m.touch(); sys.exit(0 if n else {BUSY})"
    )
    work = Work([cell], lambda _: python(code), lambda _: (tmp_path / "done").exists())
    assert set(work.run()) == {cell.key}  # it ends well the second time, but makes nothing: that is a failure too


def test_stopping_stops_every_cell_politely(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    cells = cells_of(load_plan(sweep_file()), 3)
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1] + '.saved').touch(), sys.exit(130)))\n"
        "pathlib.Path(sys.argv[1] + '.began').touch()\n"
        "time.sleep(60)\n"
    )

    def tell() -> None:
        if len(list(tmp_path.glob("*.began"))) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    work = Work(cells, lambda c: [*python(code), str(tmp_path / c.key)], lambda _: False, 2, tell=tell)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        work.run()
    assert time.monotonic() - started < 30
    assert len(list(tmp_path.glob("*.saved"))) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_each_job_has_its_cores_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("rcdeploy.sweep.work.usable_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [environment(i, 4)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["4", "5", "4", "5"]
    assert environment(0, 4)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment(0, 4)["OMP_NUM_THREADS"] == "1"


def test_the_command_goes_on_and_makes_the_table(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    """In processes, as a user has it: one line cannot be trained, the others can; then everything is there."""
    row = '\n[[rows]]\nname = "bad"\nset = { "cache.source" = "real", "cache.images" = "pictures" }\n'
    text = (
        SWEEP.replace("[0, 1]", "[0]").replace("\n[paper]", row + "\n[paper]").replace('[[rows]]\nname = "with"\n', "")
    )
    (tmp_path / "pictures").mkdir()  # no metadata.csv in it
    file = sweep_file(text, train={"max_steps": 2}, cache={"folder": None})
    run = CliRunner().invoke
    listed = json.loads(run(app, ["sweep", str(file), "--dry-run", "--json"]).output)
    assert [row["state"] for row in listed] == ["not scored", "waits", "waits"]

    done = subprocess.run(
        [sys.executable, "-m", "rcdeploy.cli.main", "sweep", str(file), "--jobs", "2"], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "1 of 3 cells failed" in done.stderr
    assert "bad, seed 0" in done.stderr
    assert "has no metadata.csv" in done.stderr
    assert "2 of 3 cells: " in done.stderr
    text = (tmp_path / "results/table.md").read_text()
    assert "**1 of 3 cells are not done.**" in text
    result = json.loads((tmp_path / "results/table.json").read_text())
    assert [len(line["cells"]) for line in result["lines"]] == [1, 1, 0]
    assert result["lines"][1]["cells"][0]["train_minutes"] > 0

    listed = json.loads(run(app, ["sweep", str(file), "--dry-run", "--json"]).output)
    assert [row["state"] for row in listed] == ["done", "done", "waits"]
    assert "every student" not in run(app, ["sweep", str(file), "--dry-run"]).output
    shutil.rmtree(tmp_path / "results")
    again = run(app, ["sweep", str(file), "--only-table"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "results/table.md").read_text() == text
