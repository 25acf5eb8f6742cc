"""Claims: who may make a thing, when a claim is taken over, and the log of those who wait."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rcdeploy.storage import claims
from rcdeploy.storage.claims import (
    STALE_SECONDS,
    STALE_SECONDS_UNREADABLE,
    STALE_SECONDS_WITHOUT_HEARTBEAT,
    Claim,
    Holder,
    make_once,
    process_start,
)
from rcdeploy.storage.shards import claim_missing_shards
from rcdeploy_runtime.errors import RcdeployError

HOST = socket.gethostname()
# holds a claim until a line comes on stdin
HOLD = """
import sys
from pathlib import Path
from rcdeploy.storage.claims import Claim
claim = Claim(Path(sys.argv[1]))
print(claim.take(), flush=True)
sys.stdin.readline()
claim.release()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that has taken the claim on `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def write_claim(path: Path, content: dict[str, Any] | str, *, age: float = 0.0) -> Path:
    """A claim on `path` that was renewed `age` seconds ago."""
    file = path.with_name(path.name + ".claim")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    renewed = time.time() - age
    os.utime(file, (renewed, renewed))
    return file


def of_this_process(**changes: Any) -> dict[str, Any]:
    return {**vars(Holder.this_process()), **changes}


def test_a_claim_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "x")
    assert claim.take()
    assert {**json.loads(claim.path.read_text()), "since": 0} == of_this_process(since=0)
    assert not Claim(tmp_path / "x").take(), "in this process neither"
    claim.release()
    assert list(tmp_path.iterdir()) == []
    other = hold(tmp_path / "x")
    assert not claim.take()
    other.communicate("\n")
    assert claim.take()
    claim.release()


def test_only_one_of_many_threads_takes_a_claim(tmp_path: Path) -> None:
    taken: list[bool] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        taken.append(Claim(tmp_path / "x").take())

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    other = hold(tmp_path / "x")
    other.send_signal(signal.SIGKILL)
    while process_start(other.pid) not in (None, "ended"):
        time.sleep(0.01)
    claim = Claim(tmp_path / "x")
    assert claim.take(), "although its parent has not waited for it: it is a zombie"
    claim.release()
    other.communicate()
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_reused_pid_is_taken_over(tmp_path: Path) -> None:
    living = os.getppid()
    write_claim(tmp_path / "x", of_this_process(pid=living, started=process_start(living)))
    assert not Claim(tmp_path / "x").take()
    write_claim(tmp_path / "x", of_this_process(pid=living, started="1"))
    assert Claim(tmp_path / "x").take()
    write_claim(tmp_path / "y", of_this_process(started="1"))
    assert Claim(tmp_path / "y").take(), "also when the pid is that of the process that asks, as in a container"


@pytest.mark.parametrize("age", [0, STALE_SECONDS - 30, STALE_SECONDS + 30])
def test_the_claim_of_another_machine_expires(tmp_path: Path, age: float) -> None:
    write_claim(tmp_path / "x", of_this_process(host="another-machine"), age=age)
    assert Claim(tmp_path / "x").take() is (age > STALE_SECONDS)


def test_the_claim_of_a_living_process_of_this_machine_does_not_expire(tmp_path: Path) -> None:
    write_claim(tmp_path / "x", of_this_process(), age=1e6)
    assert not Claim(tmp_path / "x").take()


@pytest.mark.parametrize("content", ["", "[]", '{"host": null, "pid": "x"}', '{"host": "', "\x00"])
def test_an_unreadable_claim_expires_after_some_seconds(tmp_path: Path, content: str) -> None:
    write_claim(tmp_path / "x", content)
    assert not Claim(tmp_path / "x").take()
    write_claim(tmp_path / "x", content, age=STALE_SECONDS_UNREADABLE + 1)
    assert Claim(tmp_path / "x").take()


def test_claims_of_earlier_versions(tmp_path: Path) -> None:
    """{"host", "pid"}, renewed between pieces of work only."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_claim(tmp_path / "x", {"host": HOST, "pid": ended.pid})
    assert Claim(tmp_path / "x").take()
    for host, pid in ((HOST, os.getppid()), ("another-machine", 1)):
        write_claim(tmp_path / "y", {"host": host, "pid": pid}, age=STALE_SECONDS_WITHOUT_HEARTBEAT - 30)
        assert not Claim(tmp_path / "y").take()
    write_claim(tmp_path / "y", {"host": "another-machine", "pid": 1}, age=STALE_SECONDS_WITHOUT_HEARTBEAT + 1)
    assert Claim(tmp_path / "y").take()


def test_a_slow_maker_keeps_its_claim_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    claim = Claim(tmp_path / "x")
    assert claim.take()
    os.utime(claim.path, (0, 0))
    wait_until(lambda: claim.path.stat().st_mtime > 0)
    claim.release()
    assert not claim.path.exists()
    time.sleep(0.1)
    assert not claim.path.exists()


def test_a_claim_that_was_taken_over_is_neither_renewed_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept for long wakes up: the claim is another's now."""
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    claim = Claim(tmp_path / "x")
    assert claim.take()
    file = write_claim(tmp_path / "x", of_this_process(host="another-machine"), age=60)
    before = file.stat().st_mtime
    time.sleep(0.1)
    claim.release()
    assert file.stat().st_mtime == before


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    claim = Claim(tmp_path / "x")
    assert claim.take()
    assert not Claim(tmp_path / "x").take()
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match=r"cannot write .*x\.claim: No such file or directory"):
        Claim(tmp_path / "missing" / "x").take()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(claims, "NOTICE_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
def test_make_once_waits_and_logs_for_whom(tmp_path: Path) -> None:
    other = hold(tmp_path / "pool.build")
    remarks: list[str] = []
    calls: list[int] = []

    def log(text: str) -> None:
        remarks.append(text)
        time.sleep(0.1)
        other.communicate("\n")  # it ends without having made anything

    whole = tmp_path / "pool" / "manifest.json"

    def make() -> None:
        calls.append(1)
        whole.parent.mkdir()
        whole.touch()

    make_once(make, whole, Claim(tmp_path / "pool.build"), (whole.parent, tmp_path), log)
    assert calls == [1]
    (remark,) = remarks
    about = re.escape(f"waiting for process {other.pid} on {HOST}, which has been making {whole.parent} since ")
    assert re.fullmatch(about + r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", remark)
    make_once(make, whole, Claim(tmp_path / "pool.build"), (whole.parent, tmp_path), log)
    assert calls == [1]


@pytest.mark.usefixtures("impatient")
def test_waiting_for_shards_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdeploy.storage.shards.is_whole", lambda path: path.exists())
    files = [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
    write_claim(files[1], of_this_process(host="another-machine"))
    write_claim(files[2], of_this_process(host="another-machine"))
    remarks: list[str] = []
    shards = claim_missing_shards(files, log=remarks.append)
    assert next(shards)[0] == 0
    files[0].touch()

    def finish() -> None:
        wait_until(lambda: bool(remarks))
        time.sleep(0.1)
        for file in files[1:]:
            file.touch()
            time.sleep(0.1)

    thread = threading.Thread(target=finish)
    thread.start()
    assert list(shards) == []
    thread.join()
    (remark,) = remarks
    assert remark.startswith(f"waiting for process {os.getpid()} on another-machine, which has been making {files[1]}")


def test_a_failed_make_once_removes_what_it_began(tmp_path: Path) -> None:
    whole = tmp_path / "pools" / "a" / "manifest.json"

    def make() -> None:
        whole.parent.mkdir()
        (whole.parent / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(make, whole, Claim(tmp_path / "pools" / "a.build"), (whole.parent, whole.parent.parent))
    assert list(tmp_path.iterdir()) == []
