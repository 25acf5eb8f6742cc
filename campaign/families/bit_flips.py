"""Files of a stopped run, its cache and its pool are harmed; going on ends as without harm, or names what is harmed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from ..attempts import Failed, Family, Place
from ..commands import INPUTS, copy_inputs, run_result
from ..mutate import harmed

STOP_AT = 5
FOLDERS = {"run": 4, "cache": 3, "pool": 2}
"""how often each is harmed, relative to the others"""
UNREAD = ("loss.png", "samples", "recipe.json", "index.json", "prompts.txt")
"""written for people: nothing depends on them"""


def run(place: Place, random: Random) -> None:
    stopped = Path(place.once("stopped run", lambda: _stopped_run(place)))
    expected = place.once("its end", lambda: _end_of(stopped, place))
    for name in (*INPUTS, *FOLDERS):
        source = stopped / name
        shutil.copytree(source, name) if source.is_dir() else shutil.copyfile(source, name)
    files = _harm(random, place)
    try:
        _distill()
    except RcdeployError as error:
        if not any(part in str(error) for file in files for part in (file.name, file.parent.name)):
            raise Failed(f"the refusal names none of {', '.join(map(str, files))}: {error}") from None
        raise
    actual = run_result(Path.cwd())
    differing = [k for k in sorted(actual.keys() | expected.keys()) if actual.get(k) != expected.get(k)]
    if "metrics" in differing and any(file.name == "metrics.jsonl" for file in files):
        differing.remove("metrics")  # lines of a harmed log are not made again
    if differing:
        raise Failed(f"it went on in silence to another result: {', '.join(differing[:3])}")


def _harm(random: Random, place: Place) -> list[Path]:
    """Harm one file, or two; returns which."""
    folder = random.choices(list(FOLDERS), list(FOLDERS.values()))[0]
    candidates = sorted(f for f in Path(folder).rglob("*") if f.is_file() and not set(f.parts) & set(UNREAD))
    chosen = random.sample(candidates, min(len(candidates), random.choice((1, 1, 1, 2))))
    words = []
    for file in chosen:
        if random.random() < 0.1:
            file.unlink()
            words.append(f"{file} removed")
        else:
            data, change = harmed(random, file.read_bytes())
            file.write_bytes(data)
            words.append(f"{file}: {change}")
    place.describe("; ".join(words))
    return chosen


def _distill(*overrides: str, stop_at: int | None = None) -> None:
    """rcdeploy distill in the current folder, in this process."""
    from rcdeploy.distill.loop import distill
    from rcdeploy.recipe_file import load_recipe

    class Stop(Exception):
        pass

    def progress(stage: str, completed: int, *_: Any) -> None:
        if stage == "distill" and completed == stop_at:
            raise Stop

    try:
        distill(load_recipe(Path("recipe.toml"), list(overrides)), Path("run"), progress, lambda _text: None)
    except Stop:
        return


def _stopped_run(place: Place) -> str:
    """A run that has stopped one step after its second checkpoint, in the scratch of this process."""
    from rcdeploy.prompts.pool_builder import build_pool

    folder = place.folder.parent / "stopped"
    copy_inputs(place.materials, folder)
    here = Path.cwd()
    os.chdir(folder)
    recipe = Path("recipe.toml")
    recipe.write_text(
        recipe.read_text()
        .replace("checkpoint_every = 4", "checkpoint_every = 2")
        .replace("keep_checkpoints = 1", "keep_checkpoints = 3")
        .replace("log_every = 3", "log_every = 1")
    )
    build_pool([Path("paired.txt"), Path("further.txt")], Path("pool"))
    _distill(stop_at=STOP_AT)
    os.chdir(here)
    return str(folder)


def _end_of(stopped: Path, place: Place) -> Any:
    """The result of going on without harm."""
    folder = place.folder.parent / "unharmed"
    shutil.copytree(stopped, folder)
    here = Path.cwd()
    os.chdir(folder)
    _distill()
    os.chdir(here)
    return run_result(folder)


FAMILY = Family("Bit flips", run, share=120, seconds=90)
