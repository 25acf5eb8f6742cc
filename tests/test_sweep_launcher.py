"""Processes of trials: failures as data, retries, shares of cores and GPUs, and their end with their parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rcdeploy.sweep.launcher import Launcher
from rcdeploy.sweep.plan import load_plan
from rcdeploy.sweep.trial import Trial
from rcdeploy.sweep.trial_process import EXIT_BUSY, FAILURE, environment, failure_of, recorded_failure
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import is_running


@pytest.fixture
def trials(sweep_file: Callable[..., Path]) -> list[Trial]:
    return load_plan(sweep_file()).trials[:4]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def touch(file: Path) -> list[str]:
    return python(f"open({str(file)!r}, 'w')")


def test_a_failed_trial_stops_no_other(trials: list[Trial], tmp_path: Path) -> None:
    fails = (
        "from pathlib import Path; from rcdeploy_runtime.files import write_json; "
        f"write_json(Path({str(trials[1].file(FAILURE))!r}), "
        "{'message': 'it broke, badly', 'fix': 'mend it', 'errors': ['a, b', 'c']}); raise SystemExit(2)"
    )
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    commands = {trial.key: touch(tmp_path / trial.key) for trial in trials}
    commands |= {trials[1].key: python(fails), trials[2].key: python(killed)}
    ended: list[str] = []
    launcher = Launcher(
        trials,
        lambda trial: commands[trial.key],
        lambda trial: (tmp_path / trial.key).exists(),
        jobs=2,
        on_end=lambda trial, _seconds, _failure: ended.append(trial.key),
    )
    failures = launcher.run()
    assert failures.keys() == {trials[1].key, trials[2].key}
    assert failures[trials[1].key].to_json() == {
        "message": "it broke, badly",
        "fix": "mend it",
        "errors": ["a, b", "c"],
    }
    assert failures[trials[2].key].message == "killed by signal 9"
    assert (tmp_path / trials[0].key).exists() and (tmp_path / trials[3].key).exists()
    assert len(ended) == 4
    again = Launcher(trials, lambda t: touch(tmp_path / t.key), lambda t: (tmp_path / t.key).exists())
    assert again.run() == {}
    assert not trials[1].file(FAILURE).exists(), "of the attempt before"


def test_a_failure_is_recorded_as_data(trials: list[Trial]) -> None:
    trial = trials[0]
    trial.folder.parent.mkdir(parents=True)
    error = RcdeployError("no room", fix="Free some.", errors=["disk, full"])
    with pytest.raises(RcdeployError), recorded_failure(trial):
        raise error
    assert failure_of(trial, 2).to_json() == error.to_json()
    with pytest.raises(ZeroDivisionError), recorded_failure(trial):
        raise ZeroDivisionError("division by zero")
    assert failure_of(trial, 1).message == "ZeroDivisionError: division by zero"
    with recorded_failure(trial):
        pass
    assert failure_of(trial, 1).message == "ended with exit code 1 and no error"


def test_a_busy_trial_is_tried_again(trials: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdeploy.sweep.launcher.RETRY_SECONDS", 0.1)
    mark = str(tmp_path / "tried")
    code = (
        f"import pathlib, sys; m = pathlib.Path({mark!r}); n = m.exists(); m.touch(); sys.exit(0 if n else {EXIT_BUSY})"
    )
    launcher = Launcher(trials[:1], lambda _: python(code), lambda _: (tmp_path / "done").exists())
    assert set(launcher.run()) == {trials[0].key}, "the second time it ends well, but nothing is done: a failure too"


def test_stopping_terminates_every_trial_once(trials: list[Trial], tmp_path: Path) -> None:
    """In a process of its own: a SIGTERM that this one did not catch would end pytest."""
    child = (
        "import pathlib, signal, sys, time; "
        "save = lambda *_: (open(sys.argv[1] + '.saved', 'a').write('x'), sys.exit(130)); "
        "signal.signal(signal.SIGTERM, save); "
        "pathlib.Path(sys.argv[1] + '.began').touch(); "
        "time.sleep(60)"
    )
    parent = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from rcdeploy.sweep.launcher import Interrupted, Launcher\n"
        "from rcdeploy.sweep.plan import load_plan\n"
        "trials = load_plan(Path('table.toml')).trials[:3]\n"
        f"launcher = Launcher(trials, lambda t: [sys.executable, '-c', {child!r}, t.key], lambda _: False, jobs=2)\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "try:\n    launcher.run()\n"
        "except Interrupted:\n    print('interrupted', signal.getsignal(signal.SIGTERM) is before)\n"
    )
    with subprocess.Popen(python(parent), stdout=subprocess.PIPE, text=True) as sweep:
        assert wait_for(lambda: len(list(tmp_path.glob("*.began"))) == 2 or sweep.poll() is not None)
        sweep.send_signal(signal.SIGTERM)
        output, _ = sweep.communicate(timeout=30)
    assert (sweep.returncode, output) == (0, "interrupted True\n")
    assert [file.read_text() for file in tmp_path.glob("*.saved")] == ["x", "x"]


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_trials_end_when_the_sweep_is_killed(trials: list[Trial], tmp_path: Path, is_stubborn: bool) -> None:
    """SIGKILL of the parent: the trial gets SIGTERM, and ends without asking if that does not help."""
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if is_stubborn else ""
    child = (
        "import pathlib, os, signal, time; from rcdeploy.sweep.trial_process import exit_with_parent; "
        f"{ignore}exit_with_parent(grace_seconds=0.5); "
        "p = pathlib.Path('pid.tmp'); p.write_text(str(os.getpid())); p.rename('pid'); time.sleep(120)"
    )
    parent = (
        "from pathlib import Path; import sys; from rcdeploy.sweep.launcher import Launcher; "
        "from rcdeploy.sweep.plan import load_plan; trials = load_plan(Path('table.toml')).trials[:1]; "
        f"Launcher(trials, lambda _: [sys.executable, '-c', {child!r}], lambda _: False).run()"
    )
    with subprocess.Popen(python(parent)) as sweep:
        assert wait_for(lambda: (tmp_path / "pid").is_file() or sweep.poll() is not None)
        pid = int((tmp_path / "pid").read_text())
        sweep.kill()
    assert wait_for(lambda: not is_running(pid))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_each_job_has_its_cores_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("rcdeploy.sweep.trial_process.usable_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [environment(i, 4)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["4", "5", "4", "5"]
    assert environment(0, 4)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment(0, 4)["OMP_NUM_THREADS"] == "1"
