"""The power fails at a random change of the disk; the same command then goes on and ends with the same result."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from random import Random

from ..attempts import Failed, Family, Place
from ..commands import compare, fork, must_end_well, set_up, wait
from ..power import Recorder, cut_power, known_contents

WEIGHTED = ["distill"] * 6 + ["cache"] * 5 + ["evaluate"] * 3 + ["prompts build"] * 3


def run(place: Place, random: Random) -> None:
    name = random.choice(WEIGHTED)
    changes = place.once(f"changes of {name}", lambda: _count_changes(place, name))
    command, expected = set_up(place, name)
    words = []
    for _ in range(random.choice((1, 1, 1, 2))):
        cut = random.randint(1, changes)
        aside = _aside(place)
        known = known_contents(place.folder)
        code = wait(fork([*command.arguments, "--quiet"], Recorder(aside, cut).install))
        if code not in (0, -signal.SIGKILL):
            raise Failed(f"before the cut it ended with exit code {code}")
        lost = cut_power(place.folder, aside, known, random)
        words.append(f"{name}, power cut before change {cut} of {changes}: {', '.join(lost[:6]) or 'nothing is lost'}")
        place.describe("; then ".join(words))
    must_end_well(command.arguments, "after the power cut")
    compare(command, expected, "after the power cut")


def _count_changes(place: Place, name: str) -> int:
    """Changes of the disk in the command when nothing interrupts it."""
    command, _ = set_up(place, name)
    aside = _aside(place)
    code = wait(fork([*command.arguments, "--quiet"], Recorder(aside).install))
    if code:
        raise Failed(f"without a cut it ended with exit code {code}")
    changes = int((aside / "count").read_text())
    for entry in place.folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return changes


def _aside(place: Place) -> Path:
    aside = place.folder.parent / "aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    return aside


FAMILY = Family("Power cuts", run, share=60, seconds=180, refusable=False)
