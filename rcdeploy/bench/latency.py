"""Costs of models side by side: counted from shapes, and timed, each backend in a process of its own.

Timed calls take turns, one of each process, so that other load on the machine affects all alike.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.samplers import SAMPLERS
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from ..machine import busy_warning, describe, gemm_rate
from ..model_description import COMPONENTS, FORMAT_BACKENDS, TORCH_BACKENDS, ModelDescription
from ..progress import Progress
from ..units import image_size_text
from .costs import branches, component_costs, image_macs
from .worker_process import WorkerProcess

Timings = dict[str, float]
Entry = tuple[int, ModelDescription, str]
"""(index of the model, model, backend) of one process"""
BACKENDS = (*TORCH_BACKENDS, *FORMAT_BACKENDS.values())
REQUIREMENTS = {
    "onnxruntime": (("onnxruntime",), "pip install onnxruntime"),
    "openvino": (("openvino",), 'pip install "rcdeploy[openvino]"'),
    "tensorrt": (("tensorrt", "tensorrt_rtx"), "pip install tensorrt cuda-bindings"),
    "executorch": (("executorch",), 'in an environment of its own: pip install "rcdeploy[executorch]"'),
}
"""backend -> modules of which one must be installed, and the command that installs it"""
PAUSE_SECONDS = 0.02
"""between two processes' turns: threads of the one before still spin for a while"""
SIZED_COMPONENTS = ("unet", "vae_decoder")
"""networks whose time depends on the size of the image"""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        size: (height, width) in pixels of every model's images; None takes the first model's default.
        sizes: further sizes at which UNet and decoder are timed.
        num_inference_steps, guidance_scale, sampler: of an image; None takes each model's own.
        runs: timed calls of each component.
        threads: None takes torch's default.
        device: auto, cpu, cuda.
        backends: empty takes each model's default.
        time: False only counts, and starts no process.
        random_weights: time named students too, with random weights (their values do not change the time).
    """

    size: tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    runs: int = 9
    threads: int | None = None
    device: str = "auto"
    backends: tuple[str, ...] = ()
    time: bool = True
    random_weights: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("steps", 1 if self.num_inference_steps is None else self.num_inference_steps, 1),
            ("runs", self.runs, 3),  # fewer have no spread to compare by
            ("threads", self.threads or 1, 1),
        ):
            if value < least:
                raise RcdeployError(f"{name} must be at least {least}, not {value}")
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise RcdeployError(f"there is no sampler {self.sampler!r}", fix=f"Samplers: {', '.join(SAMPLERS)}.")
        for backend in self.backends:
            if backend not in BACKENDS:
                raise RcdeployError(f"there is no backend {backend!r}", fix=f"Backends: {', '.join(BACKENDS)}.")

    def sampling(self, model: ModelDescription) -> SamplingDefaults:
        """How an image of this model is sampled."""
        return model.sampling.override(self.sampler, self.num_inference_steps, self.guidance_scale)


def bench(models: Sequence[ModelDescription], settings: Settings, progress: Progress) -> dict[str, Any]:
    """Count every model's costs and, unless settings.time is False, time them.

    Returns:
        {"machine", "settings", "warnings", "subjects"}, JSON-able; times in seconds. warnings: sentences on why the
        timings may mislead. settings: steps and guidance are null where the models have different ones. subjects[i]:
        name, kind, source, sampling {sampler, num_inference_steps, guidance_scale}, unet_batch_size, components {name:
        parameters, bytes, macs_thop, macs}, image {macs_thop, macs}, backends {name: precision, device, import_seconds,
        load_seconds, first_image_seconds, peak_memory_bytes, timings {component or "image": median, p10, p90, min, max,
        runs}, sizes {"HxW": timings}, gmacs_per_second, share_of_gemm}}. share_of_gemm is None off the processor. MACs
        are of a batch of one; a timed UNet call has a batch of the guidance branches.

    Raises:
        RcdeployError: a model cannot do what is requested; before anything is started.
    """
    size = settings.size or models[0].image_size
    plan = _plan(models, settings, size)
    warning = busy_warning() if plan else None
    threads = settings.threads or _default_threads()
    rows = [_costs(model, settings, size) for model in models]
    result: dict[str, Any] = {
        "machine": describe(),
        "settings": {
            "height": size[0],
            "width": size[1],
            **_common([row["sampling"] for row in rows]),
            "threads": threads,
            "device": settings.device,
        },
        "warnings": [warning] if warning else [],
        "subjects": rows,
    }
    if not plan:
        return result
    gemm = gemm_rate(threads)
    result["machine"]["gemm_gmacs_per_second"] = gemm / 1e9
    measurements = _measure(plan, settings, size, threads, progress)
    for (index, _, backend), measurement in zip(plan, measurements, strict=True):
        rate = rows[index]["image"]["macs"] / measurement["timings"]["image"]["median"]
        measurement["gmacs_per_second"] = rate / 1e9
        measurement["share_of_gemm"] = rate / gemm if measurement["device"] == "cpu" else None
        rows[index]["backends"][backend] = measurement
    result["settings"]["device"] = ", ".join(dict.fromkeys(m["device"] for m in measurements))
    return result


def ratio(timings: Timings, base: Timings) -> float | None:
    """Median over base's median; None when their 10th to 90th percentiles overlap: then neither is the faster one."""
    if timings["p10"] <= base["p90"] and base["p10"] <= timings["p90"]:
        return None
    return timings["median"] / base["median"]


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


def _costs(model: ModelDescription, settings: Settings, size: tuple[int, int]) -> dict[str, Any]:
    components = component_costs(model, size)
    sampling = settings.sampling(model)
    return {
        "name": model.name,
        "kind": model.kind,
        "source": model.source,
        "sampling": dict(vars(sampling)),
        "unet_batch_size": branches(sampling.guidance_scale, model.takes_guidance_scale),
        "components": components,
        "image": image_macs(components, sampling.unet_calls, sampling.guidance_scale, model.takes_guidance_scale),
        "backends": {},
    }


def _common(samplings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all models are sampled with; None where they differ."""
    first = samplings[0]
    return {key: value if all(s[key] == value for s in samplings) else None for key, value in first.items()}


def sampling_text(settings: Mapping[str, Any]) -> str:
    """Steps and guidance that the models have in common."""
    steps, guidance = settings["num_inference_steps"], settings["guidance_scale"]
    texts = [
        "each model's own steps" if steps is None else f"{steps} step{'s' if steps > 1 else ''}",
        "each model's own guidance" if guidance is None else f"guidance {guidance:g}",
    ]
    return "each model's own steps and guidance" if steps is None and guidance is None else ", ".join(texts)


def _default_threads() -> int:
    import torch

    return torch.get_num_threads()


def _plan(models: Sequence[ModelDescription], settings: Settings, size: tuple[int, int]) -> list[Entry]:
    """Every model and backend that is to be timed. Raises RcdeployError for what cannot be."""
    for model in models:
        for image_size in (size, *settings.sizes):
            model.latent_size(image_size)
    if not settings.time:
        return []
    plan: list[Entry] = []
    for index, model in enumerate(models):
        if model.folder is not None or settings.random_weights:
            plan += [(index, model, backend) for backend in _backends_of(model, settings.backends)]
    planned = list(dict.fromkeys(backend for *_, backend in plan))
    for backend in dict.fromkeys([*planned, *settings.backends]):
        modules, command = REQUIREMENTS.get(backend, ((), ""))
        if modules and not any(importlib.util.find_spec(name) for name in modules):
            raise RcdeployError(f"the backend {backend} is not installed", fix=command)
    if unused := [backend for backend in settings.backends if backend not in planned]:
        raise RcdeployError(
            f"none of the models runs on {', '.join(unused)}",
            fix="Runs and diffusers folders run on torch; a package on what it was exported for.",
        )
    return plan


def _backends_of(model: ModelDescription, requested: Sequence[str]) -> list[str]:
    backends = [b for b in requested if b in model.backends] if requested else [model.backends[0]]
    if not backends:
        raise RcdeployError(
            f"{model.source} runs on {' and '.join(model.backends)}, not on {', '.join(requested)}",
            fix="Name its backend too, or make a package for the other one: rcdeploy export FOLDER --format "
            "onnx|openvino|trt.",
        )
    return backends


def _measure(
    plan: Sequence[Entry], settings: Settings, size: tuple[int, int], threads: int, progress: Progress
) -> list[dict[str, Any]]:
    """Start a process for each entry, one after another, then time all calls in turns."""
    calls = [(component, size) for component in (*COMPONENTS, "image")]
    calls += [(c, at) for at in dict.fromkeys(settings.sizes) for c in SIZED_COMPONENTS if at != size]
    seconds: dict[tuple[int, str, tuple[int, int]], list[float]] = {}
    with ExitStack() as processes:
        workers: list[WorkerProcess] = []
        measurements: list[dict[str, Any]] = []
        for index, (_, model, backend) in enumerate(plan):
            progress("loading", index, len(plan))
            task = _task(model, backend, settings, model.latent_size(size), threads)
            worker = processes.enter_context(WorkerProcess.start(f"{model.source} on {backend}", task))
            workers.append(worker)
            measurements.append({"precision": model.precision, **worker.reply()})
        progress("loading", len(plan), len(plan))
        for turn in range(settings.runs + 1):  # the first one warms up
            progress("timing", turn, settings.runs + 1)
            for component, at in calls:
                for i, (worker, (_, model, _)) in enumerate(zip(workers, plan, strict=True)):
                    time.sleep(PAUSE_SECONDS)
                    elapsed = worker.seconds(component, model.latent_size(at))
                    if turn:
                        seconds.setdefault((i, component, at), []).append(elapsed)
        progress("timing", settings.runs + 1, settings.runs + 1)
    for i, measurement in enumerate(measurements):
        measurement["timings"] = {c: summary(seconds[i, c, size]) for c in (*COMPONENTS, "image")}
        measurement["sizes"] = {
            image_size_text(at): {c: summary(seconds[i, c, at]) for c in SIZED_COMPONENTS} for at in settings.sizes
        }
    return measurements


def _task(
    model: ModelDescription, backend: str, settings: Settings, latent_size: tuple[int, int], threads: int
) -> dict[str, Any]:
    """What latency_worker reads, JSON-able."""
    sampling = settings.sampling(model)
    return {
        "backend": backend,
        "folder": str(model.folder) if model.folder else None,
        "configs": {} if model.folder else model.configs,
        "text_length": model.text_length,
        "latent_size": latent_size,
        "unet_batch_size": branches(sampling.guidance_scale, model.takes_guidance_scale),
        "sampling": dict(vars(sampling)),
        "threads": threads,
        "device": settings.device,
    }
