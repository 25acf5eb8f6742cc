"""The server under four times the load that it can carry: what it draws, how fast, what it loses or mixes up.

    python benchmarks/server_load.py                      # examples/students/fashion, 20 seconds
    python benchmarks/server_load.py PACKAGE --seconds 60 --times 4 --threads 4
    python benchmarks/server_load.py --beside-litserve .venv-litserve/bin/python

First it measures how many images a second the server draws for clients who wait for their answers. Then requests come
in at `--times` that rate, whether or not earlier ones are answered; more than the queue takes get status 429. Each
request has a prompt and a seed of its own, and its image is compared with the one that the runtime draws alone. The
client runs on the same machine, and takes its share of the processor.

--beside-litserve measures the first figure alone, for our server and for the same runtime behind LitServe
(litserve_app.py), in turns. It names the Python of an environment with litserve and the runtime:
pip install litserve ./runtime
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from rcdeploy_runtime import TextToImage

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ("red", "blue", "green", "yellow")
THINGS = ("boot", "bag", "shirt", "dress")
PROMPTS = [f"a photo of a {colour} {thing} on a white background" for colour in COLOURS for thing in THINGS]
DRAW = "/v1/images/generations"
CLIENTS = 17
"""of the overload: httpx goes through all connections of a client for every request, which one with hundreds cannot do
as often as it must. Not a divisor of the number of prompts, so that every client asks for each."""


@dataclass(frozen=True)
class Answer:
    """status: 0 where there was none that could be read. mixed_up: its image is not that of its own prompt and seed."""

    status: int
    seconds: float
    mixed_up: bool = False


class Check:
    """Whether an image is the one that the runtime draws alone, to one grey level.

    A server gives the same bytes for the same request, nearly always: those that were found right once are not decoded
    again, so that ten minutes of images cost the client neither time nor memory.
    """

    def __init__(self, expected: list[np.ndarray]) -> None:
        self.expected = expected
        self.right: list[set[str]] = [set() for _ in expected]

    def is_right(self, case: int, image: str) -> bool:
        if image in self.right[case]:
            return True
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).astype(int)
        right = bool(np.abs(pixels - self.expected[case]).max() <= 1)
        if right:
            self.right[case].add(image)
        return right


@contextmanager
def serving(package: Path, threads: int, queue: int) -> Iterator[tuple[str, psutil.Process]]:
    """The server as a process of its own; yields its url and the process."""
    command = [sys.executable, "-m", "rcdeploy_runtime", "serve", str(package), "--port", "0"]
    command += ["--threads", str(threads), "--queue", str(queue)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    if not first.startswith("{"):
        raise SystemExit(first + process.stderr.read())
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # a full pipe would stop it
    try:
        yield f"http://127.0.0.1:{json.loads(first)['port']}", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        drain.wait(10)


@contextmanager
def litserve(python: Path, package: Path, threads: int) -> Iterator[str]:
    """The same runtime behind LitServe; yields its url."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), str(ROOT / "benchmarks/litserve_app.py"), str(package), str(port), str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


async def ask(client: httpx.AsyncClient, case: int, check: Check | None = None) -> Answer:
    begun = time.perf_counter()
    wrong = False
    try:
        reply = await client.post(DRAW, json={"prompt": PROMPTS[case], "seed": case})
        seconds = time.perf_counter() - begun
        if check and reply.status_code == 200:
            wrong = not check.is_right(case, reply.json()["data"][0]["b64_json"])
    except (httpx.HTTPError, ValueError, LookupError, OSError) as error:  # OSError: no image
        print(f"no answer: {error!r}", file=sys.stderr)
        return Answer(0, time.perf_counter() - begun)
    return Answer(reply.status_code, seconds, wrong)


async def capacity(client: httpx.AsyncClient, clients: int, seconds: float) -> float:
    """Images a second for `clients` who each wait for their answer before they ask again."""
    cases = itertools.cycle(range(len(PROMPTS)))
    end = time.perf_counter() + seconds

    async def one_client() -> int:
        count = 0
        while time.perf_counter() < end:
            count += (await ask(client, next(cases))).status == 200
        return count

    begun = time.perf_counter()
    count = sum(await asyncio.gather(*(one_client() for _ in range(clients))))
    return count / (time.perf_counter() - begun)


@dataclass
class Overload:
    """answers: one a request. seconds: up to the last one. memory: the server's, in MB, at first and ten times more."""

    answers: list[Answer]
    seconds: float
    memory: list[float]


async def overload(
    clients: list[httpx.AsyncClient], rate: float, seconds: float, check: Check, memory: Callable[[], float]
) -> Overload:
    """`rate` requests a second for so long, whether or not earlier ones are answered, by `clients` in turn."""
    answers: list[Answer] = []
    waiting: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        answers.append(await ask(clients[number % len(clients)], number % len(PROMPTS), check))

    used = [memory()]
    begun = time.perf_counter()
    for number in itertools.count():
        due = begun + number / rate
        if due >= begun + seconds or time.perf_counter() >= begun + seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(number))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
        if time.perf_counter() - begun > len(used) * seconds / 10:
            used.append(memory())
    await asyncio.gather(*waiting)
    if len(answers) != number:
        raise SystemExit(f"{number} requests were sent, and {len(answers)} were answered or counted as lost")
    used.append(memory())
    return Overload(answers, time.perf_counter() - begun, used)


def summary(measured: Overload) -> dict[str, Any]:
    answers = measured.answers
    times = sorted(answer.seconds for answer in answers if answer.status == 200)
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    refused = sum(answer.status == 429 for answer in answers)
    return {
        "seconds": round(measured.seconds, 1),
        "requests": len(answers),
        "requests a second": round(len(answers) / measured.seconds, 1),
        "drawn": len(times),
        "refused (429)": refused,
        "lost": len(answers) - len(times) - refused,
        "mixed up": sum(answer.mixed_up for answer in answers),
        "images a second": round(len(times) / measured.seconds, 1),
        "p50 s": round(cuts[49], 3) if times else None,
        "p99 s": round(cuts[98], 3) if times else None,
        "memory over time, MB": [round(x) for x in measured.memory],
    }


def client_of(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    return httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False)


async def until_ready(client: httpx.AsyncClient, path: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if (await client.get(path)).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise SystemExit("the server was not ready within a minute")


async def measure(
    url: str, args: argparse.Namespace, check: Check, memory: Callable[[], float]
) -> tuple[float, Overload]:
    """-> images a second that the server carries, and what came of `times` as many requests."""
    async with client_of(url) as client:
        await until_ready(client, "/readyz")
        rate = await capacity(client, clients=10, seconds=min(30, args.seconds / 4))
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(url)) for _ in range(CLIENTS)]
        return rate, await overload(clients, args.times * rate, args.seconds, check, memory)


async def carried(url: str, ready: str, seconds: float) -> float:
    """Images a second, after a first answer that is not counted."""
    async with client_of(url) as client:
        await until_ready(client, ready)
        if (await ask(client, 0)).status != 200:
            raise SystemExit(f"{url} draws no image")
        return await capacity(client, clients=10, seconds=seconds)


def beside_litserve(args: argparse.Namespace) -> dict[str, Any]:
    """Images a second of both servers, each started anew for every turn."""
    rates: dict[str, list[float]] = {"rcdeploy_runtime": [], "litserve": []}
    for turn in range(args.turns):
        with serving(args.package, args.threads, args.queue) as (url, _):
            rates["rcdeploy_runtime"].append(asyncio.run(carried(url, "/readyz", args.seconds / 4)))
        with litserve(args.beside_litserve, args.package, args.threads) as url:
            rates["litserve"].append(asyncio.run(carried(url, "/health", args.seconds / 4)))
        print(f"turn {turn + 1} of {args.turns}", file=sys.stderr)
    return {
        "images a second, median": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "range": {name: [round(min(values), 1), round(max(values), 1)] for name, values in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, nargs="?", default=ROOT / "examples/students/fashion")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--times", type=float, default=4, help="of what the server can carry")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside-litserve", type=Path, metavar="PYTHON", help="of an environment with litserve")
    parser.add_argument("--turns", type=int, default=5, help="of each server beside LitServe (default: 5)")
    args = parser.parse_args()
    if args.beside_litserve:
        print(json.dumps(beside_litserve(args), indent=1))
        return
    model = TextToImage.load(args.package, threads=args.threads)
    expected = [np.asarray(model.generate(p, seed=k)[0][0]).astype(int) for k, p in enumerate(PROMPTS)]
    with serving(args.package, args.threads, args.queue) as (url, process):
        rate, measured = asyncio.run(measure(url, args, Check(expected), lambda: process.memory_info().rss / 1e6))
    result = {"capacity, images a second": round(rate, 1), **summary(measured)}
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["lost"] or result["mixed up"] else 0)


if __name__ == "__main__":
    main()
