"""rcdeploy sweep as a user meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sweeps import SWEEP
from typer.testing import CliRunner

from rcdeploy.cli.main import app


def test_the_command_goes_on_and_makes_the_table(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    """In processes, as a user has it: one variant cannot be trained, the others can; then the table is complete."""
    row = '\n[[rows]]\nname = "bad"\nset = { "cache.source" = "real", "cache.images" = "pictures" }\n'
    text = (
        SWEEP.replace("[0, 1]", "[0]").replace("\n[paper]", row + "\n[paper]").replace('[[rows]]\nname = "with"\n', "")
    )
    (tmp_path / "pictures").mkdir()  # without metadata.csv
    file = sweep_file(text, train={"max_steps": 2}, cache={"folder": None})
    run = CliRunner().invoke
    listed = json.loads(run(app, ["sweep", str(file), "--dry-run", "--json"]).output)
    assert [row["state"] for row in listed] == ["not scored", "not begun", "not begun"]

    done = subprocess.run(
        [sys.executable, "-m", "rcdeploy.cli.main", "sweep", str(file), "--jobs", "2"], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "1 of 3 trials failed" in done.stderr
    assert "bad, seed 0" in done.stderr
    assert "has no metadata.csv" in done.stderr
    assert "2 of 3 trials: " in done.stderr
    text = (tmp_path / "results/table.md").read_text()
    assert "**1 of 3 trials are not done.**" in text
    result = json.loads((tmp_path / "results/table.json").read_text())
    assert [len(row["cells"]) for row in result["lines"]] == [1, 1, 0]
    assert result["lines"][1]["cells"][0]["train_minutes"] > 0

    listed = json.loads(run(app, ["sweep", str(file), "--dry-run", "--json"]).output)
    assert [row["state"] for row in listed] == ["done", "done", "not begun"]
    assert "every student" not in run(app, ["sweep", str(file), "--dry-run"]).output
    shutil.rmtree(tmp_path / "results")
    again = run(app, ["sweep", str(file), "--only-table"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "results/table.md").read_text() == text
