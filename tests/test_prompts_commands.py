"""`prompts generate` and `prompts unseen` with a language model."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from language_model_server import Reply, Server, paper_answers
from tiny_wordnet import write_wordnet
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.prompts import endpoint as endpoint_module
from rcdeploy_runtime.errors import RcdeployError

run = CliRunner().invoke


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.02)


def command(out: str, server_url: str, *more: str) -> list[str]:
    return [
        "prompts", "generate", "--out", out, "--wordnet", "wordnet", "--per-noun", "4", "--paired", "9",
        "--endpoint", server_url, "--model", "tester", "--json", *more,
    ]  # fmt: skip


def test_generate_through_an_endpoint(server: Server, tmp_path: Path) -> None:
    write_wordnet(tmp_path / "wordnet")
    result = run(app, command("made", server.url))
    assert isinstance(result.exception, RcdeployError) and "nothing was sent" in str(result.exception)
    assert not server.bodies
    result = run(app, command("made", server.url, "--yes", "--price-in", "1.5", "--price-out", "2"))
    assert result.exit_code == 0 and "at your prices about" in result.stderr
    nouns = (tmp_path / "made/nouns.txt").read_text().splitlines()
    assert "teapot" in nouns and "justice" not in nouns
    assert json.loads(result.stdout) == [{"nouns": len(nouns), "prompts": 4 * len(nouns), "paired": 9}]
    sent = len(server.bodies)
    files = {f.name: f.read_bytes() for f in (tmp_path / "made").iterdir()}
    assert run(app, command("made", server.url)).exit_code == 0  # nothing to send, nothing to confirm
    assert len(server.bodies) == sent and {f.name: f.read_bytes() for f in (tmp_path / "made").iterdir()} == files


def test_a_killed_generate_resumes_with_what_is_missing(server: Server, tmp_path: Path) -> None:
    write_wordnet(tmp_path / "wordnet")
    server.delay_s = 0.1
    line = [sys.executable, "-m", "rcdeploy.cli.main", *command("made", server.url, "--yes", "--concurrency", "2")]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(server.bodies) < 18 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.3)
    journal = tmp_path / "made/journal.jsonl"
    journalled = journal.read_bytes().count(b"\n")
    assert 10 <= journalled <= 18 and not (tmp_path / "made/pool.txt.gz").exists()
    before, server.delay_s = len(server.bodies), 0.0
    again = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    users = server.users()
    # requests under way when it was killed are sent once more, no others
    assert len(set(users)) == len(users) - (before - journalled) and before - journalled <= 2
    assert len(journal.read_text().splitlines()) == len(set(users))
    fresh = subprocess.run(
        [sys.executable, "-m", "rcdeploy.cli.main", *command("fresh", server.url, "--yes")], capture_output=True
    )
    assert fresh.returncode == 0
    for name in ("nouns.txt", "pool.txt.gz", "paired.txt.gz"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_an_unreachable_endpoint_keeps_earlier_answers(server: Server, tmp_path: Path) -> None:
    (tmp_path / "nouns.txt").write_text("cup\njug\nvase\n")
    down = (500, {}, "gone")
    calls: list[int] = []

    def once(body: dict[str, Any]) -> Reply:
        calls.append(1)
        return paper_answers(body) if len(calls) == 1 else down

    server.answer = once
    line = ["prompts", "generate", "--out", "made", "--nouns", "nouns.txt", "--per-noun", "3", "--model", "tester"]
    line += ["--retries", "1", "--concurrency", "1", "--yes", "--quiet", "--endpoint"]
    failed = run(app, [*line, server.url])
    assert isinstance(failed.exception, RcdeployError) and "does not answer" in str(failed.exception)
    assert len((tmp_path / "made/journal.jsonl").read_text().splitlines()) == 1
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening
        failed = run(app, [*line, f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"])
    assert "Is the server up" in str(failed.exception)
    server.answer = paper_answers
    assert run(app, [*line, server.url]).exit_code == 0
    assert len(gzip.decompress((tmp_path / "made/pool.txt.gz").read_bytes()).splitlines()) == 9


def test_contradicting_options(tmp_path: Path) -> None:
    for more, message in (
        (["--endpoint", "http://x/v1"], "needs the name of a model"),
        (["--model", "m"], "belong to an --endpoint"),
        (["--endpoint", "http://x/v1", "--local-model", "m"], "are both given"),
    ):
        failed = run(app, ["prompts", "generate", "--out", "made", *more])
        assert isinstance(failed.exception, RcdeployError) and message in str(failed.exception)
    assert list(tmp_path.iterdir()) == []


def unseen(*more: str) -> Any:
    return run(app, ["prompts", "unseen", "captions.txt", "--out", "split", "--json", *more])


def test_unseen_by_words_and_by_model(server: Server, tmp_path: Path) -> None:
    captions = [
        "a red  bus",
        "two wolves",
        "my tabby moggy",
        "an ugly moggy",
        "a crane lifts",
        "a red bus",
        "a cub scout",
    ]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    assert json.loads(unseen().stdout) == [{"captions": 6, "kept": 3, "dropped": 3, "keyword": 3}]
    assert (tmp_path / "split/kept.txt").read_text().splitlines() == ["a red bus", "an ugly moggy", "a crane lifts"]
    result = unseen("--endpoint", server.url, "--model", "tester", "--yes")
    assert json.loads(result.stdout) == [{"captions": 6, "kept": 2, "dropped": 4, "keyword": 3, "model": 1}]
    dropped = [json.loads(line) for line in (tmp_path / "split/dropped.jsonl").read_text().splitlines()]
    assert [(d["stage"], d["reason"]) for d in dropped] == [
        ("keyword", "wolf"), ("keyword", "tabby"), ("model", "moggy"), ("keyword", "cub"),
    ]  # fmt: skip
    (body,) = server.bodies
    assert body["messages"][0]["content"].startswith("You are an assistant that identifies if each sentence in the")
    assert json.loads(body["messages"][1]["content"].split("Input: ")[1]) == [
        "a red bus",
        "an ugly moggy",
        "a crane lifts",
    ]
    assert unseen("--endpoint", server.url, "--model", "tester").exit_code == 0 and len(server.bodies) == 1
    # what was dropped is a source of prompts
    assert run(app, ["prompts", "build", "split/dropped.jsonl", "--out", "texts", "--quiet"]).exit_code == 0
    (tmp_path / "boats.txt").write_text("bus\n")
    assert json.loads(unseen("--concept", "vehicles", "--words", "boats.txt").stdout)[0]["kept"] == 5
    assert "--words FILE" in str(unseen("--concept", "vehicles").exception)
    assert "go together" in str(unseen("--pictures", "x").exception)
