"""What the server refuses, and how: tokens, origins, limits, bodies that are wrong; and its command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_server import Running, serving
from openai import AuthenticationError, OpenAI

from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.__main__ import main
from rcdeploy_runtime.server.gate import Gate
from rcdeploy_runtime.server.json_log import JsonFormatter
from rcdeploy_runtime.server.settings import TOKEN_VARIABLE, Limits, Tokens, listening_socket

ROOT = Path(__file__).parent.parent
STUDENT = str(ROOT / "examples/students/fashion")
TOKEN = "a-token-that-nobody-knows"
LIMITS = Limits(body_bytes=2_000, prompt_characters=50, pixels=64 * 96, steps=5, images=2)
DRAW = "/v1/images/generations"


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.load(STUDENT, threads=1)


@pytest.fixture(scope="module")
def server(model: TextToImage) -> Iterator[Running]:
    with serving(model, limits=LIMITS) as running:
        yield running


WRONG: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"prompt": "x" * 51}, 400, "prompt", "at most 50 characters"),
    ({"negative_prompt": "x" * 51}, 400, "negative_prompt", "at most 50 characters"),
    ({"n": 3}, 400, "n", "at most 2"),
    ({"size": "128x64"}, 400, "size", "at most 6,144 pixels"),
    ({"size": "60x60"}, 400, None, "multiples of 32"),
    ({"steps": 6}, 400, "steps", "at most 5"),
    ({"model": "other"}, 404, "model", "no such model"),
    ({"stream": True, "response_format": "url"}, 400, "response_format", "without a url"),
    ({"prompt": ""}, 422, "prompt", "at least 1 character"),
    ({"prompt": None}, 422, "prompt", "valid string"),
    ({"n": 0}, 422, "n", "greater than or equal to 1"),
    ({"n": "2"}, 422, "n", "valid integer"),
    ({"size": "64"}, 422, "size", "pattern"),
    ({"sampler": "kdpm2"}, 422, "sampler", "euler_ancestral"),
    ({"sampler": []}, 422, "sampler", "valid string"),
    ({"background": "transparent"}, 422, "background", "opaque"),
    ({"output_format": "svg"}, 422, "output_format", "png"),
    ({"partial_images": 4}, 422, "partial_images", "less than or equal to 3"),
    ({"unknown": 1}, 422, "unknown", "not permitted"),
]


@pytest.mark.parametrize(("fields", "status", "param", "words"), WRONG, ids=[str(f)[:30] for f, *_ in WRONG])
def test_a_wrong_field_is_named(
    server: Running, fields: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    answer = server.client.post(DRAW, json={"prompt": "a bag", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param) and words in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"prompt":', 400),
        (b"", 422),
        (b"[]", 422),
        (b"5", 422),
        (b'{"prompt": "\\ud800"}', 422),
        (b"\xff\xfe\x00", 400),
    ],
)
def test_a_body_that_is_no_request(server: Running, content: bytes, status: int) -> None:
    answer = server.client.post(DRAW, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_other_types_and_places(server: Running) -> None:
    assert "application/json" in server.client.post(DRAW, content=b'{"prompt": "x"}').json()["error"]["message"]
    for method, path, status in (("GET", "/v2", 404), ("GET", DRAW, 405), ("GET", "/v1/models/x", 404)):
        answer = server.client.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"
    assert server.client.get("/docs").status_code == 404
    assert server.client.get("/healthz").text == "ok" and server.client.get("/readyz").text == "ready"


def test_bodies_are_bounded_with_and_without_a_length(server: Running) -> None:
    body = json.dumps({"prompt": "x" * 2_000}).encode()
    for content in (body, iter([body[:1_500], body[1_500:]])):  # the second is sent in chunks
        answer = server.client.post(DRAW, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    upload = server.client.post("/v1/images/edits", data={"prompt": "a bag"}, files={"image": b"x" * 3_000})
    assert upload.status_code == 413
    gate = Gate(None, server.service.settings, server.service.metrics)  # type: ignore[arg-type]
    refusal = gate._refusal({"path": DRAW, "headers": [(b"content-length", b"9" * 5_000)]})
    assert refusal is not None and refusal.status_code == 413  # Python reads no number of 5,000 digits


def test_tokens(model: TextToImage) -> None:
    with serving(model, tokens=Tokens(["another-token-of-ours", TOKEN])) as running:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": TOKEN},
            {"authorization": f"Basic {TOKEN}"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                answer = running.client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert [running.client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        client = OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0)
        url = client.images.generate(prompt="a bag", response_format="url").data[0].url
        assert running.client.get(url).status_code == 200
        with pytest.raises(AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_only_listed_web_pages_may_ask(model: TextToImage) -> None:
    page = "https://studio.example"
    with serving(model, cors_origins=(page,)) as running:
        allowed = running.client.get("/v1/models", headers={"origin": page})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == page
        asked = {"origin": page, "access-control-request-method": "POST"}
        assert running.client.options(DRAW, headers=asked).status_code == 200
        for origin in ("https://evil.example", "null", "http://[::1", "http://127.0.0.1:1"):
            refused = running.client.post(DRAW, json={"prompt": "x"}, headers={"origin": origin})
            assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers


def test_the_servers_own_page_may_ask_unless_its_name_was_bent_to_lead_here(model: TextToImage) -> None:
    def status(running: Running, name: str, **headers: str) -> int:
        address = f"{name}:{running.url.rpartition(':')[2]}"
        headers |= {"host": address, "origin": f"http://{address}"}
        return running.client.get("/v1/page", headers=headers).status_code

    with serving(model) as running:
        assert [status(running, name) for name in ("127.0.0.1", "localhost", "[::1]")] == [200] * 3
        assert status(running, "rebound.example") == 403
    with serving(model, tokens=Tokens([TOKEN])) as running:
        assert status(running, "studio.example", authorization=f"Bearer {TOKEN}") == 200
        assert status(running, "studio.example") == 401


def test_the_log_has_no_prompts_unless_it_is_asked_to(model: TextToImage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rcdeploy_runtime.server")
    for log_prompts in (False, True):
        caplog.clear()
        with serving(model, log_prompts=log_prompts) as running:
            running.draw("a private prompt")
            running.draw("a private prompt", n="x")
        lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
        drawn = next(line for line in lines if line["event"] == "request" and line["status"] == 200)
        assert drawn["route"] == DRAW and drawn["images"] == 1 and drawn["seconds"] > 0 and drawn["request_id"]
        assert any("private" in json.dumps(line) for line in lines) == log_prompts


def test_fastapis_telemetry_is_off(
    model: TextToImage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its exporters are not installed: were it on, fastapi would say so."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(model) as running:
        assert running.client.get("/readyz").text == "ready"
    assert "telemetry" not in caplog.text


def test_addresses() -> None:
    listener = listening_socket("127.0.0.1", 0, open_to_all=True)
    with listener, pytest.raises(RcdeployError, match="cannot be listened on"):
        listener.listen()
        listening_socket("127.0.0.1", listener.getsockname()[1], open_to_all=True)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(RcdeployError, match="no token is set"):
            listening_socket(host, 0, open_to_all=True)
    listening_socket("0.0.0.0", 0, open_to_all=False).close()
    with pytest.raises(RcdeployError, match="no address of this machine"):
        listening_socket("no.such.host.invalid", 0, open_to_all=True)


def test_the_command_line_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    short = tmp_path / "short"
    short.write_text("abc\n")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for arguments, words in (
        ([str(tmp_path / "none"), "--port", "0"], "none"),
        ([STUDENT, "--token-file", str(tmp_path / "missing")], "cannot be read as a file of tokens"),
        ([STUDENT, "--token-file", str(empty)], "has no token"),
        ([STUDENT, "--token-file", str(short)], "fewer than 16 characters"),
        ([STUDENT, "--token-file", str(short), "--no-auth"], "Leave one of them out"),
        ([STUDENT, "--host", "0.0.0.0"], "no token is set"),
        ([STUDENT, "--port", "70000"], "port is 70000"),
        ([STUDENT, "--queue", "0"], "queue is 0"),
        ([STUDENT, "--batch-window-ms", "-1"], "batch-window-ms is -1"),
        ([STUDENT, "--max-seconds", "0"], "max-seconds is 0"),
        ([STUDENT, STUDENT], "fashion, fashion: each package needs one of its own"),
        ([STUDENT, STUDENT, "--model", "b", "--model", "b"], "b, b: each package needs one of its own"),
        ([STUDENT, "--model", "a", "--model", "b"], "a, b: each package needs one of its own"),
        ([STUDENT, STUDENT, "--model", "b", "--digest", "sha256:0"], "2 packages need 2 digests"),
    ):
        assert main(["serve", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", STUDENT]) == 2
    assert 'pip install "./runtime[server]"' in capsys.readouterr().err


def test_a_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rcdeploy_runtime", "serve", STUDENT, "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        started = json.loads(process.stderr.readline())
        assert started["event"] == "serving" and started["host"] == "127.0.0.1"
        url = f"http://127.0.0.1:{started['port']}"
        for line in process.stderr:
            if "startup complete" in line:
                break
        assert httpx.post(url + DRAW, json={"prompt": "a bag"}, timeout=60, trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stderr]
        assert process.wait(60) == 0
    assert {"batch", "request"} <= {line["event"] for line in lines}
