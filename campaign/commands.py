"""Commands of rcdeploy that kills and power cuts interrupt: how each starts, and what its result is.

Each runs in a fork of the worker process, where torch is imported already, and can be killed without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from .attempts import Failed, Place
from .guard import GUARD
from .materials import empty

INPUTS = ("teacher", "paired.txt", "further.txt", "recipe.toml")
STEPS = 8
"""of the run in recipe.toml"""
FOREIGN_EXIT = 3
"""exit code of a process that did what no attempt may do"""
EVALUATE = ["evaluate", "run", "--prompts", "paired.txt", "--count", "6", "--judge", "teacher/judge", "--steps", "2"]
EVALUATE += ["--shard-size", "2", "--batch-size", "2", "--device", "cpu", "--out", "evaluation"]
BUILD = ["prompts", "build", "paired.txt", "further.txt", "--out", "pool"]
EXPORT = ["export", "run", "--out", "package"]


@dataclass(frozen=True)
class Command:
    """needs: folders made by the commands before it. result: what must be equal after going on."""

    arguments: list[str]
    needs: tuple[str, ...]
    result: Callable[[Path], Any]


def _bytes_of(folder: str, *patterns: str) -> Callable[[Path], Any]:
    def result(where: Path) -> dict[str, str]:
        found = [f for pattern in patterns for f in sorted((where / folder).glob(pattern))]
        return {str(f.relative_to(where)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found if f.is_file()}

    return result


def run_result(where: Path) -> dict[str, Any]:
    """The student, its last checkpoint, and the metrics without timings.

    Earlier checkpoints do not count: a power cut may bring files back that were removed, and nothing depends on them.
    """
    lines = (where / "run/metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k != "seconds_per_step"} for line in lines]
    files = _bytes_of("run", "pipeline/*/*", f"checkpoints/step-{STEPS:08}/*.safetensors")(where)
    return {**files, "metrics": metrics}


def _scores(where: Path) -> Any:
    scores = json.loads((where / "evaluation/scores.json").read_text())
    return {key: scores[key] for key in ("scores", "identity", "counts")}


def _package_result(where: Path) -> Any:
    """Graphs may be named and ordered otherwise from export to export: what counts is the picture."""
    from rcdeploy_runtime import TextToImage

    images, _ = TextToImage.load(where / "package", device="cpu", threads=1).generate(
        "a bag", seed=1, num_inference_steps=1
    )
    return hashlib.sha256(images[0].tobytes()).hexdigest()


COMMANDS = {
    "prompts build": Command(BUILD, (), _bytes_of("pool", "*.bin", "manifest.json")),
    "cache": Command(["cache", "recipe.toml"], ("pool",), _bytes_of("cache", "latents-*.safetensors", "prompts/*.bin")),
    "distill": Command(["distill", "recipe.toml", "--out", "run"], ("pool", "cache"), run_result),
    "evaluate": Command(EVALUATE, ("run",), _scores),
    "export": Command(EXPORT, ("run",), _package_result),
}


def fork(arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> int:
    """Run a command of rcdeploy in a fork of this process; returns its pid. before: runs there first."""
    import rcdeploy.distill.loop  # noqa: F401  the fork need not import it
    from rcdeploy.cli.main import app

    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        before()
        app(list(arguments), standalone_mode=False)
        code = 0
    except RcdeployError as error:
        Path("refusal.txt").write_text(str(error))
        code = 2
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        traceback.print_exc()
        Path("traceback.txt").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(FOREIGN_EXIT if GUARD.violations else code)


def wait(pid: int, seconds: float | None = None) -> int | None:
    """The exit code (a signal is negative); None when it has not ended after `seconds`."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


def must_end_well(arguments: Sequence[str], when: str) -> None:
    """Raises Failed when the command, run now, has another exit code than 0."""
    code = wait(fork([*arguments, "--quiet"]))
    if code:
        said = [Path(f).read_text()[:300] for f in ("refusal.txt", "traceback.txt") if Path(f).is_file()]
        raise Failed(f"{when} it ended with exit code {code}: {' '.join(said)}")


def finished(place: Place, name: str) -> Path:
    """A folder in which all commands up to `name` have run to their end without a fault, in this process's scratch."""

    def make() -> Path:
        command = COMMANDS[name]
        folder = place.folder.parent / f"finished-{name.replace(' ', '-')}"
        copy_inputs(place.materials, empty(folder))
        for need in command.needs:
            maker = next(n for n, c in COMMANDS.items() if result_folder(c) == need)
            shutil.copytree(finished(place, maker) / need, folder / need)
        here = Path.cwd()
        os.chdir(folder)
        started = time.monotonic()
        must_end_well(command.arguments, "without a fault")
        place.remembered[f"seconds of {name}"] = time.monotonic() - started
        os.chdir(here)
        return folder

    return Path(place.once(f"finished {name}", make))


def result_folder(command: Command) -> str:
    return "cache" if command.arguments[0] == "cache" else command.arguments[command.arguments.index("--out") + 1]


def copy_inputs(materials: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in INPUTS:
        source = materials / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copyfile(source, folder / name)


def set_up(place: Place, name: str) -> tuple[Command, Any]:
    """The current folder as it is before the command; returns it and its result without a fault."""
    whole = finished(place, name)
    command = COMMANDS[name]
    copy_inputs(place.materials, place.folder)
    for need in command.needs:
        shutil.copytree(whole / need, place.folder / need)
    return command, place.once(f"result of {name}", lambda: command.result(whole))


def compare(command: Command, expected: Any, when: str) -> None:
    """Raises Failed, naming what differs, when the result here is not the one without a fault."""
    actual = command.result(Path.cwd())
    if actual == expected:
        return
    if isinstance(actual, dict) and isinstance(expected, dict):
        differing = sorted(k for k in actual.keys() | expected.keys() if actual.get(k) != expected.get(k))
        raise Failed(f"{when} the result is another: {', '.join(differing[:4])}")
    raise Failed(f"{when} the result is another")
