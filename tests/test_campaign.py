"""The campaign: a short seeded part of it, and that its machinery sees what it should see."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from campaign import __main__ as command
from campaign import families, mutate, power, runner
from campaign.attempts import DONE, FAILED, REFUSED, Attempt, Failed, Family, Outcome, Place
from campaign.guard import Guard
from campaign.journal import Journal
from campaign.table import Effort, failures, table
from rcdeploy_runtime import RcdeployError

SHORT = {"recipes": 12, "prompt-files": 14, "network": 10, "packages": 18}
"""attempts of the families that load no torch"""


def test_a_short_part_of_it_survives(tmp_path: Path) -> None:
    """Graphs that make ONNX Runtime allocate are left out here: what they take depends on the machine's allocator."""
    attempts = [Attempt(family, number) for family, count in SHORT.items() for number in range(count)]
    outcomes = command.run(attempts, 1, tmp_path / "room")
    assert failures([o for o in outcomes if "GB of memory" not in o.text]) == []
    assert len(outcomes) == sum(SHORT.values())
    assert sum(o.status == REFUSED for o in outcomes) > 20 and sum(o.status == DONE for o in outcomes) > 6
    assert not any(path.name in ("evil", "ran", "unpickled") for path in tmp_path.rglob("*"))


def hang(_place: Place, _random: Random) -> None:
    signal.sigwait([signal.SIGUSR1])


def spin(_place: Place, _random: Random) -> None:
    while True:
        pass


def abort(place: Place, _random: Random) -> None:
    place.describe("an abort")
    os.abort()


def eat(_place: Place, _random: Random) -> None:
    parts = [b"x" * 50_000_000 for _ in range(40)]
    time.sleep(len(parts))


def eat_for_a_moment(_place: Place, _random: Random) -> None:
    assert len(b"x" * 1_100_000_000)


def crash(_place: Place, _random: Random) -> None:
    raise TypeError("unsupported")


def leave(_place: Place, _random: Random) -> None:
    Path("../../outside").write_text("x")


def refuse(_place: Place, _random: Random) -> None:
    raise RcdeployError("no [red]such[/red] thing", fix="Leave it.")


def disappoint(_place: Place, _random: Random) -> None:
    raise Failed("another result")


MISDEEDS: dict[str, tuple[Callable[[Place, Random], None], str, str]] = {
    "hang": (hang, FAILED, "not done after 1 s"),
    "spin": (spin, FAILED, "not done after 1 s"),
    "abort": (abort, FAILED, "the process ended by SIGABRT"),
    "eat": (eat, FAILED, "GB of memory and was ended"),
    "eat for a moment": (eat_for_a_moment, FAILED, "it took 1.1 GB of memory; then done"),
    "crash": (crash, FAILED, "TypeError: unsupported"),
    "leave": (leave, FAILED, "open outside its folder"),
    "refuse": (refuse, REFUSED, "no [red]such[/red] thing"),
    "disappoint": (disappoint, FAILED, "another result"),
}


def test_every_misdeed_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one worker, which a hang or an abort ends and which goes on with the next attempt."""
    misbehaving = {
        name: Family(name, run, 1, seconds=1 if name in ("hang", "spin") else 30)
        for name, (run, _, _) in MISDEEDS.items()
    }
    monkeypatch.setattr(runner, "FAMILIES", misbehaving)
    start = "import sys, pathlib, test_campaign, campaign.families as f, campaign.worker as w; f.FAMILIES.update("
    start += "{n: test_campaign.Family(n, r, 1) for n, (r, _, _) in test_campaign.MISDEEDS.items()});"
    start += "w.main(*map(pathlib.Path, sys.argv[1:]))"
    monkeypatch.setattr(runner, "START", ["-c", start])
    monkeypatch.setitem(runner.ENVIRONMENT, "PYTHONPATH", f"{runner.ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}")
    attempts = [Attempt(name, 0) for name in MISDEEDS]
    outcomes = runner.run_attempts(attempts, tmp_path, tmp_path / "room", 1, lambda _outcome: None)
    for outcome, (_, status, text) in zip(outcomes, MISDEEDS.values(), strict=True):
        assert outcome.status == status and text in outcome.text, outcome
    assert outcomes[2].input == "an abort", "what was tried is known although the process is gone"


def test_an_attempt_can_be_repeated_alone(tmp_path: Path) -> None:
    attempts = [Attempt("recipes", number) for number in (3, 17)]
    together = command.run(attempts, 1, tmp_path / "together")
    (alone,) = command.run(attempts[1:], 1, tmp_path / "alone")
    assert (alone.input, alone.status, alone.text) == (together[1].input, together[1].status, together[1].text)
    assert alone.input and alone.input != together[0].input


def test_plan_and_table() -> None:
    attempts = command.plan(0, 2000, list(families.FAMILIES))
    assert 2000 <= len(attempts) < 2020 and len(set(attempts)) == len(attempts)
    assert {a.family for a in attempts} == set(families.FAMILIES)
    outcomes = [Outcome(attempts[0], status, "a cut", "it went on") for status in (DONE, REFUSED, FAILED)]
    assert table(outcomes)[-1] == "| **together** | 3 | 1 | 1 | 2 | 1 |"
    assert failures(outcomes) == ["- `kills:0` (seed 0): a cut: it went on"]
    with pytest.raises(SystemExit):
        command.parse(["--only", "nothing:1"])


def test_harm_is_always_a_change() -> None:
    for number in range(300):
        data = Random(number).randbytes(number % 7)
        changed, words = mutate.harmed(Random(number), data)
        assert changed != data and words


def power_cut(folder: Path, aside: Path, command: Callable[[], None], cut: int, seed: int) -> None:
    """Runs `command` in a fork that ends before change `cut`, and takes from `folder` what is not on the disk."""
    known = power.known_contents(folder)
    recorder = power.Recorder(aside, cut, guard=Guard())
    if pid := os.fork():
        os.waitpid(pid, 0)
        power.cut_power(folder, aside, known, Random(seed))
        return
    try:
        recorder.guard.install(folder)
        recorder.install()
        recorder.guard.begin(internet=True)
        command()
    finally:
        os._exit(0)


@pytest.mark.parametrize("synced", [True, False])
def test_a_power_cut_takes_what_was_not_synced(tmp_path: Path, synced: bool) -> None:
    def replace() -> None:
        beside = tmp_path / "data/beside"
        with beside.open("w") as file:
            file.write("the new contents")
            file.flush()
            if synced:
                os.fsync(file.fileno())
        beside.replace(tmp_path / "data/file")

    seen = set()
    for number in range(20):
        for name in ("data", "aside"):
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "data/file").write_text("the old contents")
        power_cut(tmp_path / "data", tmp_path / "aside", replace, 1 + number % 5, number)
        seen.add((tmp_path / "data/file").read_text() if (tmp_path / "data/file").is_file() else "")
        for file in [*(tmp_path / "aside").iterdir(), *(tmp_path / "data").iterdir()]:
            file.unlink()
    whole = {"the old contents", "the new contents"}
    assert seen == whole if synced else seen > whole


def test_a_campaign_that_was_stopped_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    first, second = Attempt("recipes", 1), Attempt("recipes", 2)
    journal = Journal(file)
    journal.note(Outcome(first, REFUSED, "an input", "no \udc80"))
    journal.add(Effort(10, 5, 2))
    journal.add(Effort(1, 1, 2))
    with file.open("a") as cut:
        cut.write('{"attempt": {"fam')
    again = Journal(file)
    assert again.outcomes == {first: Outcome(first, REFUSED, "an input", "no \udc80")} and second not in again.outcomes
    assert again.effort == Effort(11, 6, 2)
