"""What the tests of sweeps share: a sweep file, a score file, and helpers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import COLOURS, THINGS
from evaluation import save_judge

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
JUDGE_ATTRIBUTES = {
    "item": {"labels": list(THINGS), "pattern": f"({'|'.join(THINGS)})"},
    "colour": {"labels": list(COLOURS), "pattern": f"({'|'.join(COLOURS)})"},
}


def sweep_writer(folder: Path, recipe_file: Callable[..., Path]) -> Callable[..., Path]:
    """Writes folder/NAME.toml with its recipe, score file and judge. recipe: overrides of the tiny recipe."""

    def write(text: str = SWEEP, name: str = "table", score: str = SCORE, **recipe: Any) -> Path:
        recipe_file(**recipe)
        save_judge(folder / "judge", JUDGE_ATTRIBUTES)
        (folder / "score.toml").write_text(score)
        file = folder / f"{name}.toml"
        file.write_text(text)
        return file

    return write


def silent(*_: Any) -> None:
    """Progress and remarks that nobody reads."""
