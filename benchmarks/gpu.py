"""The tests and benchmarks that need a GPU, in one command: `make gpu`. Writes the tables of docs/gpu.md.

    python benchmarks/gpu.py                                        # SD-1.4's shapes, random weights, 8 minutes
    python benchmarks/gpu.py --device cpu --teacher examples/teachers/fashion --batch 4 --steps 2 --count 4

Each part runs in a process of its own with a time limit. One that dies or takes longer is a row that says so, and the
rest goes on. Nothing is downloaded. With --device cpu the same code is walked through anywhere; its figures mean
nothing and docs/gpu.md is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import gpu_tables
import torch
from rich.console import Console
from rich.table import Table

from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 480
"""for all parts together"""
LEAST_SECONDS = 5
"""that must be left for a part to be started"""
UNET_CALLS, IMAGE_CALLS = 15, 3
"""timed calls; the first of each is not counted"""
STUDENTS = ("c-micro", "b-tiny")
PIXELS = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class Part:
    """A command. name: of its row. lines: for its input. limit: seconds that it may take."""

    name: str
    command: list[str]
    limit: int
    lines: str = ""


@dataclass(frozen=True)
class Outcome:
    """problem: why a part has no result, "" if it has one. output: its standard output."""

    part: Part
    seconds: float
    problem: str
    output: str = field(default="", repr=False)

    @property
    def replies(self) -> list[Any]:
        """The lines of JSON that it printed."""
        return [reply for line in self.output.splitlines() if (reply := _json(line)) is not None]


def _json(line: str) -> Any:
    """What it says, if it is an object or a number: libraries print what they like between."""
    try:
        reply = json.loads(line)
    except ValueError:
        return None
    return reply if isinstance(reply, dict | float) else None


def run(part: Part, end: float) -> Outcome:
    """end: time.monotonic() at which all parts should be over."""
    start = time.monotonic()
    limit = min(part.limit, end - start)
    if end - start < LEAST_SECONDS:
        return Outcome(part, 0, "left out: no time")
    process = subprocess.Popen(
        part.command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    try:
        output, errors = process.communicate(part.lines, timeout=limit)
        problem = ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        output, errors = process.communicate()
        problem = f"took longer than {limit:.0f} s"
    outcome = Outcome(part, time.monotonic() - start, problem, output)
    if process.returncode and not problem:
        lines = errors.strip().splitlines() or output.strip().splitlines() or ["no message"]
        return replace(outcome, problem=f"ended with {process.returncode}: {lines[-1][:200]}")
    refusals = [r["error"]["message"] for r in outcome.replies if isinstance(r, dict) and "error" in r]
    return replace(outcome, problem=refusals[0]) if refusals else outcome


def parts(args: argparse.Namespace) -> list[Part]:
    """In the order of their weight: what there is no time for comes last."""
    student = args.student
    common = ["--device", args.device, "--batch", str(args.batch), "--steps"]
    precision = ["--precision", "no" if args.device == "cpu" else "fp16"]
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    listed = [] if args.teacher else [command("model", 90, "--work", str(args.work))]
    for name in STUDENTS:
        listed.append(
            command(f"step {name}", 90, "--teacher", args.base, "--student", name, *common, str(args.steps), *precision)
        )
    caching_steps = "25" if args.device == "cuda" else str(args.steps)
    caching = ["--teacher", args.base, *common, caching_steps, *precision, "--count", str(args.count)]
    listed += [command("cache", 60, *caching), Part("tests", tests, 150)]
    latencies = [latency(args, "torch", p, student) for p in ("fp32", "fp16", "bf16")]
    for p in ("fp32", "fp16"):
        out = str(args.work / f"package-{p}")
        listed.append(command(f"package {p}", 100, "--source", student, "--out", out, "--precision", p))
        latencies.append(latency(args, "onnxruntime", p, out))
    listed += latencies
    if args.device == "cuda":
        fp16, out = str(args.work / "package-fp16"), str(args.work / "engines")
        listed.append(command("engines fp16", 150, "--source", fp16, "--out", out, "--size", str(PIXELS["cuda"])))
        listed.append(latency(args, "tensorrt", "fp16", out))
    return listed


def command(name: str, limit: int, *options: str) -> Part:
    script = str(ROOT / "benchmarks/gpu_parts.py")
    return Part(name, [sys.executable, "-W", "ignore", script, name.split()[0], *options], limit)


def latency(args: argparse.Namespace, backend: str, precision: str, folder: str) -> Part:
    """The worker of `rcdeploy bench`, asked for UNet calls with guidance and for whole pictures."""
    side = PIXELS[args.device] // 8
    task = {
        "backend": backend,
        "precision": precision,
        "folder": folder,
        "latent_size": [side, side],
        "unet_batch_size": 2,
        "text_length": describe_model(resolve(Path(args.teacher))).text_length if args.teacher else 77,
        "sampling": {"sampler": "ddim", "num_inference_steps": args.picture_steps, "guidance_scale": 7.5},
        "threads": torch.get_num_threads(),
        "device": args.device,
    }
    requests = ["unet"] * UNET_CALLS + ["image"] * IMAGE_CALLS
    lines = "".join(json.dumps({"component": name, "latent_size": [side, side]}) + "\n" for name in requests)
    worker = [sys.executable, "-W", "ignore", "-m", "rcdeploy.bench.latency_worker", json.dumps(task)]
    return Part(f"latency {backend} {precision}", worker, 60, lines)


def show(outcomes: list[Outcome]) -> None:
    """A line a part, on the terminal."""
    table = Table("part", "seconds", "outcome", title="make gpu", title_justify="left")
    for outcome in outcomes:
        table.add_row(outcome.part.name, f"{outcome.seconds:.0f}", outcome.problem or gpu_tables.in_short(outcome))
    Console().print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=PIXELS, default="cuda")
    parser.add_argument("--teacher", help="a diffusers folder; by default one of SD-1.4's shape is built in --work")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a training")
    parser.add_argument("--count", type=int, default=32, help="latents of a cache")
    parser.add_argument("--picture-steps", type=int, default=25)
    parser.add_argument("--only", nargs="+", help="the first words of parts: step cache tests latency ...")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu")
    parser.add_argument("--page", type=Path, help="the page to write; by default docs/gpu.md, with a GPU only")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.base = str(Path(args.teacher).resolve()) if args.teacher else str(args.work / "teacher")
    args.student = args.base if args.teacher else str(args.work / "c-micro")
    args.page = args.page or (ROOT / "docs/gpu.md" if args.device == "cuda" else None)
    return args


def main() -> None:
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        print(
            f"No GPU: torch {torch.__version__} ({build}) finds none. docs/gpu.md says what a machine needs; "
            "--device cpu --teacher examples/teachers/fashion --batch 4 --steps 2 --count 4 walks through the code.",
            file=sys.stderr,
        )
        sys.exit(2)
    args.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + SECONDS
    outcomes = []
    for part in parts(args):
        if args.only and part.name.split()[0] not in args.only:
            continue
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        outcomes.append(run(part, end))
    show(outcomes)
    if args.page:
        gpu_tables.write(args.page, gpu_tables.text(outcomes))
        print(args.page)


if __name__ == "__main__":
    main()
