"""The runtime's server in a thread, and a model that draws when it is told to."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.server.app import create_app
from rcdeploy_runtime.server.service import Service
from rcdeploy_runtime.server.settings import ServerSettings, listening_socket

DEADLINE_S = 60.0


class HeldModel:
    """Draws as its model does, but waits for `go` before each step. batches: prompts of what was begun."""

    def __init__(self, model: TextToImage) -> None:
        self.model, self.go, self.batches, self.finished = model, threading.Event(), [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def stream(self, prompts: list[str], **settings: Any) -> Iterator[Any]:
        return self._held(prompts, self.model.stream(prompts, **settings))

    def _held(self, prompts: list[str], events: Iterator[Any]) -> Iterator[Any]:
        self.batches.append(list(prompts))
        for event in events:
            self.go.wait(DEADLINE_S)
            yield event
        self.finished += 1


@dataclass
class Running:
    """url: of the server. client: asks it, with no retries."""

    url: str
    client: httpx.Client
    service: Service
    server: uvicorn.Server
    thread: threading.Thread

    def draw(self, prompt: str, seed: int = 0, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/images/generations", json={"prompt": prompt, "seed": seed, **fields})


@contextmanager
def serving(*models: Any, grace_s: int = 30, names: tuple[str, ...] = ("toy",), **settings: Any) -> Iterator[Running]:
    """grace_s: to finish what was taken, at a stop. settings: of ServerSettings."""
    app = create_app(dict(zip(names, models, strict=True)), ServerSettings(**settings))
    listener = listening_socket("127.0.0.1", 0, open_to_all=True)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=grace_s))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    wait_until(lambda: server.started)
    with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
        try:
            yield Running(url, client, app.state.service, server, thread)
        finally:
            for model in models:
                if isinstance(model, HeldModel):
                    model.go.set()
            server.should_exit = True
            thread.join(DEADLINE_S)
            listener.close()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.005)


def pixels(data: str | bytes) -> np.ndarray:
    """[height, width, 3] int of an encoded image, or of one in base64."""
    encoded = base64.b64decode(data) if isinstance(data, str) else data
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


def drawn_alone(model: TextToImage, prompt: str, seed: int, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(prompt, seed=seed, **settings)[0][0]).astype(int)
