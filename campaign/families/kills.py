"""SIGKILL at a random moment of a command; the same command then goes on and ends with the same result."""

from __future__ import annotations

import os
import signal
from random import Random

from ..attempts import Family, Place
from ..commands import compare, fork, must_end_well, set_up, wait

WEIGHTED = ["distill"] * 16 + ["cache"] * 10 + ["evaluate"] * 6 + ["prompts build"] * 7 + ["export"]
"""an export takes many times as long as the others"""


def run(place: Place, random: Random) -> None:
    name = random.choice(WEIGHTED)
    command, expected = set_up(place, name)
    usual = float(place.remembered[f"seconds of {name}"])
    moments = [random.random() for _ in range(random.choice((1, 1, 2, 3)))]
    place.describe(f"{name}, killed after {', '.join(f'{m:.0%}' for m in moments)} of its usual time")
    for moment in moments:
        pid = fork([*command.arguments, "--quiet"])
        if wait(pid, moment * usual) is None:
            os.kill(pid, signal.SIGKILL)
            wait(pid)
    must_end_well(command.arguments, "after the kill")
    compare(command, expected, "after the kill")


FAMILY = Family("Kills", run, share=25, seconds=180, refusable=False)
