"""Endpoints of language models: protocol, faults, secrets and bounds."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import pytest
from language_model_server import HELLO, Reply, Server, completion, endpoint

from rcdeploy.prompts import endpoint as endpoint_module
from rcdeploy.prompts.endpoint import Endpoint, EndpointOptions
from rcdeploy.prompts.journal import Journal, ask
from rcdeploy.prompts.language_model import Request
from rcdeploy_runtime.errors import RcdeployError


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.02)


def test_an_endpoint_follows_the_protocol(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    model = endpoint(server, key_variable="MY_KEY")
    assert model.answer(HELLO).startswith("1. A cup")
    assert server.bodies == [
        {
            "model": "tester",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": HELLO.user}],
            "max_tokens": 50,
            "temperature": 0.0,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    endpoint(server).answer(HELLO)
    assert "Authorization" not in server.headers[1]
    assert Endpoint(f"{server.url}/chat/completions/", "tester").url == model.url
    with pytest.raises(RcdeployError, match=r"variable NO_KEY holds no API key\nexport NO_KEY"):
        endpoint(server, key_variable="NO_KEY")
    monkeypatch.setenv("MY_KEY", "s3c\nret")
    with pytest.raises(RcdeployError, match="MY_KEY holds no API key") as refused:
        endpoint(server, key_variable="MY_KEY")
    assert "s3c" not in str(refused.value)
    with pytest.raises(RcdeployError, match="is no address"):
        Endpoint("file:///etc/passwd", "tester")


@pytest.mark.parametrize(
    "faults",
    [
        [(500, {}, "down"), (503, {}, "still down")],
        [(429, {}, "slower"), (200, {}, "<html>not JSON"), (200, {}, '{"choices": []}')],
        [None],
    ],
    ids=["5xx", "429 and malformed", "timeout"],
)
def test_temporary_faults_are_retried(server: Server, faults: list[Reply | None]) -> None:
    server.faults = [*faults]
    assert endpoint(server, timeout_s=0.5).answer(HELLO).startswith("1. A cup")
    assert len(server.bodies) == len(faults) + 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server: Server, form: str) -> None:
    server.faults = [(429, {"Retry-After": "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)}, "")]
    endpoint(server).answer(HELLO)
    assert server.times[1] - server.times[0] > 0.9


def test_permanent_faults_are_reported_at_once(server: Server) -> None:
    server.faults = [(401, {}, "bad key")]
    with pytest.raises(RcdeployError, match=r"status 401 bad key\n.*--api-key-env"):
        endpoint(server).answer(HELLO)
    assert len(server.bodies) == 1
    server.faults = [(500, {}, "down")] * 3
    with pytest.raises(RcdeployError, match=r"does not answer \(3 tries\): status 500 down"):
        endpoint(server, retries=2).answer(HELLO)


def test_requests_are_sent_at_the_given_rate(server: Server, tmp_path: Path) -> None:
    requests = [Request("", f"Generate 1 visually rich prompts focused on the noun '{i}'", 9) for i in range(5)]
    with Journal(tmp_path / "j.jsonl") as journal:
        ask(endpoint(server, requests_per_minute=600, concurrency=4), requests, journal, lambda *_: True)
    assert server.times[-1] - server.times[0] > 0.35  # four gaps of a tenth of a second


def test_secrets_are_not_in_messages(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    key = 's3cret/"key"'
    monkeypatch.setenv("MY_KEY", key)
    echo = json.dumps({"error": f"bad {key} hunter2 tok=en"}) + f" {quote(key, safe='')}" + "x" * 1000
    place = server.url.removeprefix("http://")
    remarks: list[str] = []
    once = EndpointOptions(retries=0)
    model = Endpoint(f"http://me:hunter2@{place}?api_key=tok%3Den", "tester", once, log=remarks.append)
    model_with_key = Endpoint(server.url, "tester", once, key_variable="MY_KEY", log=remarks.append)
    credentials = base64.b64encode(b"me:hunter2").decode()
    for status in (401, 500):
        for tested, secrets in (
            (model, ("hunter2", "tok=en", "tok%3Den", credentials)),
            (model_with_key, ("s3cret", quote(key, safe=""))),
        ):
            server.faults = [(status, {}, echo)]
            with pytest.raises(RcdeployError, match=rf"status {status} ") as error:
                tested.answer(HELLO)
            assert not any(secret in str(error.value) for secret in secrets)
            assert "127.0.0.1" in str(error.value)
    assert server.paths[0] == "/v1/chat/completions?api_key=tok%3Den"
    assert server.headers[0]["Authorization"] == f"Basic {credentials}"
    assert model.url == f"{server.url}/chat/completions" and not remarks  # nobody can read along on this machine
    with pytest.raises(RcdeployError, match=r"does not answer") as unreachable:
        Endpoint("http://me:hunter2@127.0.0.1:9/v1?api_key=tok", "tester", once).answer(HELLO)
    assert "hunter2" not in str(unreachable.value) and "tok" not in str(unreachable.value)
    with pytest.raises(RcdeployError, match="is no address") as wrong:
        Endpoint("http://me:hunter2@host:port/v1?api_key=tok", "tester")
    assert "hunter2" not in str(wrong.value) and "tok" not in str(wrong.value)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://models.example/v1", True),
        ("https://models.example/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://127.0.0.9/v1", False),
        ("http://10.0.0.1/v1", True),
    ],
)
def test_a_key_over_plain_http_is_warned_of(url: str, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    remarks: list[str] = []
    Endpoint(url, "tester", key_variable="MY_KEY", log=remarks.append)
    assert len(remarks) == warned and not any("s3cret" in remark for remark in remarks)
    remarks.clear()
    Endpoint(url, "tester", log=remarks.append)  # nothing secret
    assert not remarks


def test_answers_are_bounded_in_size_and_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "MAX_ANSWER_BYTES", 10_000)
    server.faults = [completion("x" * 20_000)]
    with pytest.raises(RcdeployError, match=r"more than 10,000 bytes"):
        endpoint(server).answer(HELLO)
    server.faults = [(200, {"Content-Encoding": "gzip"}, "x")]
    with pytest.raises(RcdeployError, match="encoding 'gzip'|compressed"):
        endpoint(server).answer(HELLO)
    server.faults = [(200, {}, "[" * 9000)]
    with pytest.raises(RcdeployError, match="no chat completion"):
        endpoint(server, retries=0).answer(HELLO)
    server.trickle_s = 0.05  # each byte comes in time, all of them never
    start = time.monotonic()
    with pytest.raises(RcdeployError, match=r"no complete answer within 0.5 s"):
        endpoint(server, retries=0, timeout_s=0.5).answer(HELLO)
    assert time.monotonic() - start < 3
