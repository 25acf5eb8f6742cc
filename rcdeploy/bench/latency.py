"""What subjects cost side by side: counted from their shapes, and timed, each backend in a process of its own.

Timed calls go round in turns, one of each process, so that whatever else the machine does meets all alike.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from rcdeploy_runtime.errors import RcdeployError

from ..machine import describe, gemm_rate
from ..model_description import COMPONENTS, FORMAT_BACKENDS, TORCH_BACKENDS, ModelDescription
from ..progress import Progress
from ..units import image_size_text
from .costs import branches, component_costs, image_macs

Timings = dict[str, float]
BACKENDS = (*TORCH_BACKENDS, *FORMAT_BACKENDS.values())
NEEDED = {
    "onnxruntime": (("onnxruntime",), "pip install onnxruntime"),
    "openvino": (("openvino",), 'pip install "rcdeploy[openvino]"'),
    "tensorrt": (("tensorrt", "tensorrt_rtx"), "pip install tensorrt cuda-python"),
}
"""backend -> modules of which one must be there, and what brings it"""
PAUSE = 0.02
"""seconds between two processes' turns: threads of the one before still spin for a while"""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    size: (height, width) in pixels of every subject; None takes the first subject's own. sizes: at which UNet and
    decoder are timed besides. runs: timed calls of each part. threads: None takes torch's default. device: auto, cpu,
    cuda. backends: empty takes each subject's usual one. time: False counts alone and starts no process.
    random_weights: time students too, with random weights (time does not depend on their values).
    """

    size: tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    runs: int = 9
    threads: int | None = None
    device: str = "auto"
    backends: tuple[str, ...] = ()
    time: bool = True
    random_weights: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("steps", self.num_inference_steps, 1),
            ("runs", self.runs, 3),  # fewer have no spread to compare by
            ("threads", self.threads or 1, 1),
        ):
            if value < least:
                raise RcdeployError(f"{name} is {value}: at least {least}")
        for backend in self.backends:
            if backend not in BACKENDS:
                raise RcdeployError(f"there is no backend {backend!r}", fix=f"Backends: {', '.join(BACKENDS)}.")


def bench(subjects: Sequence[ModelDescription], settings: Settings, progress: Progress) -> dict[str, Any]:
    """{"machine", "settings", "subjects"}, JSON-able: costs of every subject and, unless settings.time is False, times.

    subjects[i]: name, kind, source, components {name: parameters, bytes, macs_thop, macs}, image {macs_thop, macs},
    backends {name: precision, device, import_seconds, load_seconds, first_image_seconds, peak_memory_bytes, timings
    {component or "image": median, p10, p90, min, max, runs}, sizes {"HxW": timings}, gmacs_per_second, share_of_gemm}}.
    Times in seconds; share_of_gemm is None off the processor. The MACs are of one row, a timed UNet call has a row for
    each guidance branch. Raises RcdeployError for what a subject cannot do, before anything is started.
    """
    size = settings.size or subjects[0].image_size
    plan = _plan(subjects, settings, size)
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        components = component_costs(subject, size)
        image = image_macs(components, settings.num_inference_steps, settings.guidance_scale)
        named = {"name": subject.name, "kind": subject.kind, "source": subject.source}
        rows.append({**named, "components": components, "image": image, "backends": {}})
    threads = settings.threads or _default_threads()
    result: dict[str, Any] = {
        "machine": describe(),
        "settings": {
            "height": size[0],
            "width": size[1],
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
            "threads": threads,
            "device": settings.device,
        },
        "subjects": rows,
    }
    if not plan:
        return result
    gemm = gemm_rate(threads)
    result["machine"]["gemm_gmacs_per_second"] = gemm / 1e9
    measured = _measure([turn[1:] for turn in plan], settings, size, threads, progress)
    for (index, _, backend), found in zip(plan, measured, strict=True):
        rate = rows[index]["image"]["macs"] / found["timings"]["image"]["median"]
        found["gmacs_per_second"] = rate / 1e9
        found["share_of_gemm"] = rate / gemm if found["device"] == "cpu" else None
        rows[index]["backends"][backend] = found
    result["settings"]["device"] = ", ".join(dict.fromkeys(found["device"] for found in measured))
    return result


def ratio(of: Timings, to: Timings) -> float | None:
    """Median over median; None when their 10th to 90th percentiles overlap: then neither is the faster one."""
    if of["p10"] <= to["p90"] and to["p10"] <= of["p90"]:
        return None
    return of["median"] / to["median"]


def summary(seconds: Sequence[float]) -> Timings:
    """median, p10, p90, min, max (seconds) and runs of three timed calls or more."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return {
        "median": statistics.median(seconds),
        "p10": tenths[0],
        "p90": tenths[-1],
        "min": min(seconds),
        "max": max(seconds),
        "runs": len(seconds),
    }


def _default_threads() -> int:
    import torch

    return torch.get_num_threads()


def _plan(
    subjects: Sequence[ModelDescription], settings: Settings, size: tuple[int, int]
) -> list[tuple[int, ModelDescription, str]]:
    """(index, subject, backend) of all that is timed. Raises RcdeployError for what cannot be."""
    for subject in subjects:
        for wanted in (size, *settings.sizes):
            subject.latent_size(wanted)
    if not settings.time:
        return []
    plan = []
    for index, subject in enumerate(subjects):
        if subject.folder is None and not settings.random_weights:
            continue
        usable = [b for b in settings.backends if b in subject.backends] if settings.backends else subject.backends[:1]
        if not usable:
            raise RcdeployError(
                f"{subject.source} runs on {' and '.join(subject.backends)}, not on {', '.join(settings.backends)}",
                fix="Name its backend too, or make a package for the other one: rcdeploy export FOLDER --format "
                "onnx|openvino|trt.",
            )
        plan += [(index, subject, backend) for backend in usable]
    for backend in dict.fromkeys([*(turn[2] for turn in plan), *settings.backends]):
        modules, command = NEEDED.get(backend, ((), ""))
        if modules and not any(importlib.util.find_spec(name) for name in modules):
            raise RcdeployError(f"the backend {backend} is not installed", fix=command)
    unused = [b for b in settings.backends if b not in {turn[2] for turn in plan}]
    if unused:
        raise RcdeployError(
            f"none of the subjects runs on {', '.join(unused)}",
            fix="Runs and diffusers folders run on torch; a package on what it was exported for.",
        )
    return plan


@dataclass(frozen=True)
class _Worker:
    """A process that has one subject loaded on one backend; its first answer says what that took."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[bytes]

    @classmethod
    @contextmanager
    def start(cls, name: str, task: dict[str, Any]) -> Iterator[_Worker]:
        command = [sys.executable, "-W", "ignore", "-m", "rcdeploy.bench.latency_worker", json.dumps(task)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(task["threads"])}
        pipe = subprocess.PIPE
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment) as process,
        ):
            try:
                yield cls(name, process, errors)
            finally:
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=5)  # it ends with its input, and clears up what it unpacked
                process.kill()

    def seconds(self, part: str, latents: tuple[int, int]) -> float:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the answer says why
            self.process.stdin.write(json.dumps({"part": part, "size": latents}) + "\n")
            self.process.stdin.flush()
        return float(self.answer())

    def answer(self) -> Any:
        """Its next line. Raises RcdeployError with what it said when it failed or ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        said = json.loads(line) if line else self._ended()
        if isinstance(said, dict) and "error" in said:
            raise RcdeployError(f"{self.name}: {said['error']}", fix=said["fix"])
        return said

    def _ended(self) -> dict[str, str]:
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-3:]
        why = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
        fix = "If memory ran out: fewer subjects at once, or a smaller --size."
        return {"error": "\n".join([f"the process that measures it {why}", *last]), "fix": fix}


def _measure(
    plan: Sequence[tuple[ModelDescription, str]],
    settings: Settings,
    size: tuple[int, int],
    threads: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """What each (subject, backend) took: loading one after another, then all timed calls in turns."""
    parts = [(name, size) for name in (*COMPONENTS, "image")]
    parts += [(name, at) for at in dict.fromkeys(settings.sizes) for name in ("unet", "vae_decoder") if at != size]
    with ExitStack() as opened:
        workers, found = [], []
        for done, (subject, backend) in enumerate(plan):
            progress("loading", done, len(plan), {})
            task = _task(subject, backend, settings, subject.latent_size(size), threads)
            worker = opened.enter_context(_Worker.start(f"{subject.source} on {backend}", task))
            workers.append(worker)
            found.append({"precision": subject.precision, **worker.answer()})
        progress("loading", len(plan), len(plan), {})
        seconds: dict[tuple[int, str, tuple[int, int]], list[float]] = {}
        for turn in range(settings.runs + 1):  # the first one warms up
            progress("timing", turn, settings.runs + 1, {})
            for part, at in parts:
                for i, (worker, (subject, _)) in enumerate(zip(workers, plan, strict=True)):
                    time.sleep(PAUSE)
                    took = worker.seconds(part, subject.latent_size(at))
                    if turn:
                        seconds.setdefault((i, part, at), []).append(took)
        progress("timing", settings.runs + 1, settings.runs + 1, {})
    for i, facts in enumerate(found):
        facts["timings"] = {name: summary(seconds[i, name, at]) for name, at in parts[: len(COMPONENTS) + 1]}
        facts["sizes"] = {
            image_size_text(at): {name: summary(seconds[i, name, at]) for name in ("unet", "vae_decoder")}
            for at in settings.sizes
        }
    return found


def _task(
    subject: ModelDescription, backend: str, settings: Settings, latents: tuple[int, int], threads: int
) -> dict[str, Any]:
    """What the process is told, JSON-able."""
    return {
        "backend": backend,
        "folder": str(subject.folder) if subject.folder else None,
        "configs": {} if subject.folder else subject.configs,
        "text_length": subject.text_length,
        "latents": latents,
        "rows": branches(settings.guidance_scale),
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "threads": threads,
        "device": settings.device,
    }
