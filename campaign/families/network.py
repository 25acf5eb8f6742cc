"""Language-model servers that are mean, and the promise that loading a package opens no socket."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Callable
from random import Random

from rcdeploy_runtime.errors import RcdeployError

from ..attempts import Failed, Family, Place
from ..guard import GUARD
from ..mean_server import MeanServer, Reply
from ..mutate import broken_json, json_text, mutated_json, shortened

KEY = "sk-campaign-0123456789abcdef"
TIMEOUT_S = 0.6
MAX_SECONDS = 4.0
"""two tries of TIMEOUT_S, the wait between them, and a busy machine"""
GOOD = {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "1. A red cup"}}]}


def run(place: Place, random: Random) -> None:
    if random.random() < 0.1:
        _load_without_socket(place)
        return
    server, other = MeanServer(), MeanServer(Reply([http(json_text(GOOD))]))
    with server.running(), other.running():
        server.reply, words = _reply(random, server, other)
        place.describe(words)
        _ask(server, random)
        if other.requests:
            raise Failed("it followed a redirect to another server")


def _ask(server: MeanServer, random: Random) -> None:
    """One request; whatever comes back is a text or an RcdeployError, soon, and without the key in it."""
    from rcdeploy.prompts import endpoint
    from rcdeploy.prompts.language_model import Request

    endpoint.FIRST_WAIT_S = 0.01
    os.environ["CAMPAIGN_KEY"] = KEY
    said: list[str] = []
    options = endpoint.EndpointOptions(timeout_s=TIMEOUT_S, retries=1, concurrency=1)
    url = server.url
    if random.random() < 0.3:
        url = url.replace("//", f"//user:{KEY}@") + f"?api_key={KEY}"
    client = endpoint.Endpoint(url, "any", options, key_variable="CAMPAIGN_KEY", log=said.append)
    # a Retry-After of a minute is honoured; nobody waits here
    stopper = threading.Timer(MAX_SECONDS - 1, client.stop)
    stopper.start()
    started = time.monotonic()
    try:
        answer = client.answer(Request("Be kind.", "Name a cup.", 50))
        said.append("")
        if not isinstance(answer, str):
            raise Failed(f"the answer is no text: {shortened(answer)}")
    except RcdeployError as error:
        said += [str(error), repr(error.__context__), repr(error.__cause__)]
        raise
    finally:
        stopper.cancel()
        if (seconds := time.monotonic() - started) > MAX_SECONDS:
            raise Failed(f"it took {seconds:.1f} s with a timeout of {TIMEOUT_S} s")
        if any(KEY in text for text in said):
            raise Failed("the key stands in a message")


def http(body: bytes, status: str = "200 OK", length: object = None, **headers: str) -> bytes:
    """A response. length: of the Content-Length header, by default the body's; "" for none."""
    head = [f"HTTP/1.1 {status}", "Connection: close"]
    if length != "":
        head.append(f"Content-Length: {len(body) if length is None else length}")
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body


def _reply(random: Random, server: MeanServer, other: MeanServer) -> tuple[Reply, str]:
    kind = random.random()
    if kind < 0.25:
        value, words = mutated_json(random, GOOD)
        return Reply([http(json_text(value))]), f"answer: {words}"
    if kind < 0.35:
        body, words = broken_json(random, json_text(GOOD))
        return Reply([http(body)]), f"answer: {words}"
    if kind < 0.45:
        text = random.choice(("\udc80", "\0" * 1000, "1. " + "x" * 10**6, "\n" * 10**6, "\u202e", KEY, ""))
        value = {"choices": [{"message": {"content": text}}]}
        return Reply([http(json_text(value))]), f"content: {shortened(text)}"
    if kind < 0.6:
        status = random.choice(
            (
                "100 Continue",
                "204 No Content",
                "206 Partial",
                "301 Moved",
                "302 Found",
                "307 Temporary",
                "308 Permanent",
            )
            + ("400 Bad", "401 No", "404 No", "418 Teapot", "429 Slow", "500 Oops", "503 Down", "600 What", "99 x")
        )
        headers = {
            "Location": random.choice((other.url + "/chat/completions", server.url, "file:///etc/passwd", "//x", "\0")),
            "Retry_After": random.choice(("0", "-5", "nan", "1e308", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "x")),
        }
        body = f"your key {KEY} and {KEY!r} was refused".encode()
        return Reply([http(body, status, **headers)]), f"status {status}, {shortened(headers)}, and it echoes the key"
    words, make = random.choice(FAULTS)
    return make(random), words


def _noise(random: Random) -> Reply:
    return Reply([random.randbytes(random.choice((1, 100, 100_000)))])


FAULTS: list[tuple[str, Callable[[Random], Reply]]] = [
    ("an answer without end", lambda _: Reply([http(b"", length=""), b"x" * 65_536], repeat=True)),
    ("an answer of a terabyte", lambda _: Reply([http(b"", length=10**12), b" " * 65_536], repeat=True)),
    ("headers without end", lambda _: Reply([b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100], repeat=True)),
    ("one header without end", lambda _: Reply([b"HTTP/1.1 200 OK\r\nA: ", b"x" * 65_536], repeat=True)),
    ("100 Continue without end", lambda _: Reply([b"HTTP/1.1 100 Continue\r\n\r\n"], repeat=True)),
    ("a drip", lambda _: Reply([bytes([b]) for b in http(json_text(GOOD))], pause_s=0.05)),
    ("a drip of headers", lambda _: Reply([b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"], pause_s=0.1, repeat=True)),
    ("silence", lambda _: Reply([], pause_s=3)),
    ("a goodbye at once", lambda _: Reply([])),
    ("a reset", lambda _: Reply([http(b"{", length=500)], reset=True)),
    ("noise", _noise),
    ("less than promised", lambda _: Reply([http(json_text(GOOD), length=10_000)])),
    ("more than promised", lambda _: Reply([http(json_text(GOOD) * 100, length=20)])),
    ("a negative length", lambda _: Reply([http(json_text(GOOD), length=-5)])),
    ("a length that is no number", lambda _: Reply([http(json_text(GOOD), length="ten")])),
    ("two lengths", lambda _: Reply([http(json_text(GOOD), Content__Length="3")])),
    (
        "wrong chunks",
        lambda random: Reply(
            [
                http(random.choice((b"zz\r\n", b"-1\r\n", b"fffffffffffffff\r\nab", b"5\r\nab")), length="").replace(
                    b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1
                )
            ]
        ),
    ),
    ("a gzip bomb", lambda _: Reply([http(_bomb(), Content_Encoding="gzip")])),
    ("another encoding", lambda _: Reply([http(json_text(GOOD), Content_Encoding="br, zstd")])),
    ("HTML", lambda _: Reply([http(b"<html>" * 1000, Content_Type="text/html")])),
    ("a picture", lambda random: Reply([http(random.randbytes(3000), Content_Type="image/png")])),
    ("an event stream", lambda _: Reply([http(b"data: {}\n\n" * 100, Content_Type="text/event-stream")])),
    ("an unknown character set", lambda _: Reply([http(json_text(GOOD), Content_Type="text/plain; charset=\0")])),
    ("a header with no UTF-8", lambda _: Reply([http(json_text(GOOD), X="\udcff\udc80")])),
    ("the key in a status line", lambda _: Reply([http(b"", f"401 {KEY}")])),
    ("the key in a header", lambda _: Reply([http(b"", "400 Bad", Location=KEY, X=KEY)])),
    ("HTTP/0.9", lambda _: Reply([json.dumps(GOOD).encode()])),
    ("HTTP/2", lambda _: Reply([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])),
]


def _bomb() -> bytes:
    return gzip.compress(bytes(200_000_000), compresslevel=1)


def _load_without_socket(place: Place) -> None:
    place.describe("a package is loaded and draws; no socket, no look-up")
    from rcdeploy_runtime import TextToImage

    GUARD.begin(internet=False, sockets=False)
    TextToImage.load(place.materials / "package", device="cpu", threads=1).generate("a bag", num_inference_steps=1)


FAMILY = Family("Network", run, share=90, seconds=30, internet=True)
