"""The measurements of `make gpu`, each a command that prints JSON: `python benchmarks/gpu_parts.py step --help`.

benchmarks/gpu.py starts each in a process of its own. With --device cpu and a small teacher they walk through the same
code anywhere, which says that it runs and nothing about speed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import inspect
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import caching
import distillation_step
import numpy as np
import per_step
import torch
import transformers
from accelerate.state import AcceleratorState
from beside_plain import quickstart
from diffusers import DDIMScheduler, StableDiffusionPipeline

from rcdeploy.bench.macs import unet_macs
from rcdeploy.cache_latents import make_latent_cache
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill import loop
from rcdeploy.machine import gemm_rate
from rcdeploy.recipe import Recipe
from rcdeploy.sampling import starting_noise
from rcdeploy.student.spec import find_student, student_config
from rcdeploy_export.components import components
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.onnx_graph import export_onnx
from rcdeploy_export.package_files import copy_configs, package_manifest
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime.engine_options import EngineOptions
from rcdeploy_runtime.files import new_folder
from rcdeploy_runtime.trt_engines import build_engines, load_builder

DTYPES = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UP = 3
"""steps that are not timed"""
SYNC_STEPS = 2
"""steps after the timed ones in which synchronisations are counted"""


class Enough(Exception):
    """All steps are measured."""


def model(work: str) -> dict[str, Any]:
    """Builds a teacher of SD-1.4's shape and c-micro beside it, with random weights, unless they are there."""
    return {"student": str(per_step.build_c_micro(Path(work)))}


def step(teacher: str, student: str, device: str, precision: str, batch: int, steps: int) -> dict[str, Any]:
    """Seconds and memory of a training step: the plain loop, ours, and ours with gradient checkpointing.

    One after the other in one process; memory is what each adds at its peak.
    """
    dtype = DTYPES[precision]
    rows = []
    with tempfile.TemporaryDirectory(prefix="rcdeploy-gpu-") as name, contextlib.chdir(name):
        recipe = _recipe(teacher, student, precision, batch, checkpointing=False)
        make_latent_cache(recipe, LatentDiffusionModel(teacher, dtype=dtype).to(device))
        for kind, checkpointing in (("plain", False), ("ours", False), ("ours, checkpointing", True)):
            recipe = _recipe(teacher, student, precision, batch, checkpointing)
            run = _plain if kind == "plain" else _ours
            rows.append({"kind": kind, **_guarded(run, recipe, device, steps)})
    config, _ = student_config(find_student(student), LatentDiffusionModel(teacher).unet_config)
    macs = [unet_macs(c).total for c in (LatentDiffusionModel(teacher).unet_config, config)]
    return {
        "student": student,
        "precision": precision,
        "batch": batch,
        "rows": rows,
        # the teacher once, the student three times: its backward pass is two
        "flops_needed": 2 * batch * (macs[0] + 3 * macs[1]),
        "gemm_flops": _gemm_flops(device, dtype),
    }


def _recipe(teacher: str, student: str, precision: str, batch: int, checkpointing: bool) -> Recipe:
    settings = {
        "teacher.path": teacher,
        "student.name": student,
        "student.init": "random" if student.startswith("c-") else "teacher",
        "cache.folder": "cache",
        "cache.batch_size": batch,
        "cache.num_inference_steps": 1,
        "prompts.paired_count": 2 * batch,
        "loss.feature": 1.0,
        "train.mixed_precision": precision,
        "train.gradient_checkpointing": checkpointing,
        "train.global_batch_size": batch,
        "train.learning_rate": 1e-6,
        "train.max_steps": 10**6,
        "train.log_every": 10**6,
        "train.checkpoint_every": 10**6,
        "train.lr_schedule": "constant",
        "train.warmup_steps": 0,
        "train.trackers": [],
        "evaluate.every": 0,
    }
    return quickstart(settings)


def _guarded(run: Callable[[Recipe, Clock], None], recipe: Recipe, device: str, steps: int) -> dict[str, Any]:
    """What was measured; too little memory is a result too."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the device of the run before
    gc.collect()
    clock = Clock(device, steps)
    error = {}
    try:
        run(recipe, clock)
    except Enough:
        pass
    except torch.OutOfMemoryError as problem:
        error = {"error": str(problem).splitlines()[0]}
    return {**clock.result, **error}


def _plain(recipe: Recipe, clock: Clock) -> None:
    teacher = LatentDiffusionModel(recipe.teacher.path, dtype=DTYPES[recipe.train.mixed_precision]).to(clock.device)
    cache = make_latent_cache(recipe, teacher)
    with tempfile.TemporaryDirectory() as name:
        pairs = distillation_step.Pairs(Path(name) / "latents", cache, teacher.tokenizer, recipe)
        losses = distillation_step.plain_loop(recipe, teacher, pairs)
        for completed, _ in enumerate(losses, start=1):
            clock("distill", completed, 0)


def _ours(recipe: Recipe, clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as name:
        loop.distill(recipe, Path(name) / "run", clock, lambda _text: None)


class Clock:
    """Progress of a training: times `steps` steps without waiting for the GPU in between, then counts what waits."""

    def __init__(self, device: str, steps: int) -> None:
        self.device = device
        self.steps = steps
        self.on_gpu = device != "cpu"
        self.result: dict[str, Any] = {}
        self.start = 0.0
        self.counting = contextlib.ExitStack()
        self.before = 0
        self.waits: list[warnings.WarningMessage] = []
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def __call__(self, stage: str, completed: int, _total: int, *_: object) -> None:
        if stage != "distill":
            return
        if completed == WARM_UP:
            self.start = self._now()
        elif completed == WARM_UP + self.steps:
            self.result["seconds"] = (self._now() - self.start) / self.steps
            if not self.on_gpu:
                raise Enough
            self.result["memory"] = torch.cuda.max_memory_allocated() - self.before
            self.waits = self.counting.enter_context(_synchronisations())
        elif completed == WARM_UP + self.steps + SYNC_STEPS:
            self.counting.close()
            self.result["synchronisations"] = len(self.waits) / SYNC_STEPS
            self.result["where"] = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in self.waits})
            raise Enough

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


@contextlib.contextmanager
def _synchronisations() -> Iterator[list[warnings.WarningMessage]]:
    """Yields the warnings of torch, one for each time that the processor waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _gemm_flops(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """Floating point operations a second of a matrix product on this device, the best of several."""
    if device == "cpu":
        return 2 * gemm_rate(seconds=0.2)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def cache(teacher: str, device: str, precision: str, batch: int, count: int, steps: int) -> dict[str, Any]:
    """Latents a second: ours beside diffusers' pipeline in the same precision and batch, a folder of each."""
    dtype = DTYPES[precision]
    with tempfile.TemporaryDirectory(prefix="rcdeploy-gpu-") as name, contextlib.chdir(name):
        loaded = LatentDiffusionModel(teacher, dtype=dtype).to(device)
        pipe = StableDiffusionPipeline.from_pretrained(loaded.folder, dtype=dtype, safety_checker=None).to(device)
        pipe.scheduler = DDIMScheduler.from_config(loaded.schedule.config)
        pipe.set_progress_bar_config(disable=True)
        rows: list[dict[str, Any]] = []
        for turn, n, of_steps in (("warm-up", batch, 2), ("timed", count, steps)):
            settings = {
                "teacher.path": teacher,
                "prompts.paired_count": n,
                "cache.batch_size": batch,
                "cache.num_inference_steps": of_steps,
            }
            start = time.perf_counter()
            made, _ = caching.ours(Path(f"ours-{turn}"), loaded, settings)
            ours = time.perf_counter() - start  # they are on the disk: nothing of it is pending
            prompts = made.prompts.take(range(n))
            start = time.perf_counter()
            folder = Path(f"plain-{turn}")
            caching.plain(folder, pipe, prompts, starting_noise(0, range(n), made.shape), batch, of_steps)
            plain = time.perf_counter() - start
            rows = [{"kind": "diffusers", "seconds": plain}, {"kind": "ours", "seconds": ours}]
        theirs = torch.stack([torch.from_numpy(np.load(folder / f"{i}.npy")).float() for i in range(n)])
        difference = float((made.latents(range(n)) - theirs).norm() / theirs.norm())
    return {
        "count": count,
        "batch": batch,
        "steps": steps,
        "precision": precision,
        "rows": rows,
        "difference": difference,
    }


def package(source: str, out: str, precision: str) -> dict[str, Any]:
    """An ONNX package for timing: traced, and not compared with torch on the processor, which takes minutes."""
    opened = ExportSource.open(Path(source))
    loaded = opened.load_model()
    options = ExportOptions(format="onnx", precision=precision)
    networks = components(loaded, encoder=False)
    with new_folder(Path(out)) as folder:
        copy_configs(opened, loaded, networks, None, folder)
        for network in networks:
            dtype = DTYPES[options.precision_of(network.name)]
            export_onnx(network, folder / network.name / "model.onnx", opset=20, dtype=dtype)  # TensorRT reads it too
        manifest = package_manifest(opened, loaded, options, [], networks, None, folder)
        manifest.add_files(folder)
        manifest.write(folder)
    return {"package": out}


def engines(source: str, out: str, size: int) -> dict[str, Any]:
    """TensorRT's engines of a package, for one size; TensorRT-RTX's, where that is what is installed."""
    ahead: tuple[str, ...] = ()
    if load_builder().__name__ == "tensorrt_rtx":
        ahead = (".".join(map(str, torch.cuda.get_device_capability() if torch.cuda.is_available() else (8, 6))),)
    options = EngineOptions(sizes=((size, size),) * 3, compute_capabilities=ahead)
    return {"package": str(build_engines(source, out, options))}


PARTS = {"model": model, "step": step, "cache": cache, "package": package, "engines": engines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, part in PARTS.items():
        options = parts.add_parser(name, help=(part.__doc__ or "").splitlines()[0])
        for option, parameter in inspect.signature(part, eval_str=True).parameters.items():
            options.add_argument(f"--{option}", type=parameter.annotation, required=True)
    arguments = vars(parser.parse_args())
    if arguments.get("device") == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(PARTS[arguments.pop("part")](**arguments)))


if __name__ == "__main__":
    main()
