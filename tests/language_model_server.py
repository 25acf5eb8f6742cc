"""A server with chat completions, answers to the three requests of the paper, and faults to order."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rcdeploy.prompts.endpoint import Endpoint, EndpointOptions
from rcdeploy.prompts.language_model import Request

Reply = tuple[int, dict[str, str], str]
"""status, headers, body"""


def completion(text: str) -> Reply:
    message = {"role": "assistant", "content": text}
    return 200, {}, json.dumps({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def paper_answers(body: dict[str, Any]) -> Reply:
    """Answers to the three requests of the paper."""
    user = body["messages"][-1]["content"]
    if match := re.match(r"Generate (\d+) visually rich prompts focused on the noun '(.*?)'", user):
        salt = len(user) + round(10 * body["temperature"])
        return completion("\n".join(f"{i}. A {match[2]} number {i} of {salt}" for i in range(1, int(match[1]) + 1)))
    if noun := re.match(r"Can a text-to-image model clearly visualize '(.*?)'\?", user):
        return completion("No. It is abstract." if noun[1] in ("justice", "entity") else "**Yes**, it is a thing.")
    matches = [re.search(r"\b(moggy|tabby)\b", sentence) for sentence in json.loads(user.split("Input: ", 1)[1])]
    rows = [{"contains_animals": "yes" if m else "no", "reason": m[1] if m else ""} for m in matches]
    return completion(f"Here you are:\n```json\n{json.dumps(rows)}\n```")


class Server(ThreadingHTTPServer):
    """Records requests, and replies with `faults` first (None: no reply at all), then with `answer`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[Reply | None] = []
        self.answer: Callable[[dict[str, Any]], Reply] = paper_answers
        self.delay_s = 0.0
        self.trickle_s = 0.0
        """seconds between the bytes of an answer"""
        self.lock = threading.Lock()
        self.concurrent = 0
        self.max_concurrent = 0

    def users(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        """Not on the tests' terminal."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.paths.append(self.path)
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers))
            fault = server.faults.pop(0) if server.faults else "none"
            server.concurrent += 1
            server.max_concurrent = max(server.concurrent, server.max_concurrent)
        time.sleep(server.delay_s)
        with server.lock:
            server.concurrent -= 1
        if fault is None:
            time.sleep(1.5)  # longer than the client waits
            return
        status, headers, text = server.answer(body) if fault == "none" else fault
        if self.path.partition("?")[0] != "/v1/chat/completions":
            status, text = 404, "no such path"
        data = text.encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in [data] if not server.trickle_s else (bytes([b]) for b in data):
                self.wfile.write(part)
                time.sleep(server.trickle_s)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client is gone: what some of these tests are about


def endpoint(server: Server, key_variable: str | None = None, **options: Any) -> Endpoint:
    return Endpoint(server.url, "tester", EndpointOptions(**{"timeout_s": 5, **options}), key_variable=key_variable)


HELLO = Request("Be kind.", "Generate 2 visually rich prompts focused on the noun 'cup', and so on.", 50)
