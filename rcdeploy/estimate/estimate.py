"""Estimates what a recipe will cost before anything is made: samples, multiply-accumulates, disk, memory, hours.

Samples and bytes follow from the recipe and its captions (workload, stages). MACs and memory come from running the code
that trains on the meta device (on_meta, work_units). Seconds are those MACs over a GPU's published rate and an
efficiency, or are measured on this machine, a call of each network at a time (durations).
"""

from __future__ import annotations

import difflib
from typing import Any

import torch

from rcdeploy_runtime.errors import RcdeployError

from ..machine import GPUS, Gpu, describe, usable_cores
from ..recipe import Recipe
from .durations import Durations, measured, on_processor, published
from .memory import GPU_ALLOWANCE, memory_bytes, memory_warnings
from .plan import Plan, make_plan
from .stages import Stage

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def estimate(
    recipe: Recipe,
    device: str | None = None,
    *,
    processes: int = 1,
    measure: bool | None = None,
    seconds: float = 15.0,
) -> dict[str, Any]:
    """The estimate as plain data, in bytes, seconds and MACs; its keys are the format of `rcdeploy estimate --json`.

    Args:
        device: a key of machine.GPUS; None: this machine.
        processes: that share the work, each with a GPU, or all of them this machine's processor.
        measure: time the networks on this machine; by default if that takes half a minute at most.
        seconds: of timing.

    Raises:
        RcdeployError: for an unknown device, and for what the run itself would refuse.
    """
    gpu = find_gpu(device)
    if gpu and measure:
        raise RcdeployError(f"only this machine can be measured, not {gpu.title}", fix="Leave out one of the two.")
    on_gpu = gpu is not None or torch.cuda.is_available()
    dtype = DTYPES[recipe.train.mixed_precision]
    in_fp32_instead = dtype == torch.float16 and not on_gpu
    plan = make_plan(recipe, processes, torch.float32 if in_fp32_instead else dtype)
    machine = describe()
    title, device_bytes, durations = _on_device(plan, gpu, machine, measure, seconds)
    slowdown = 1.0 if on_gpu else _slowdown(processes)
    stages = [_stage_costs(plan, stage, durations, slowdown) for stage in plan.stages]
    memory = {**memory_bytes(plan, on_gpu), "device": int(device_bytes)}
    return {
        "recipe": recipe.name,
        "student": recipe.student.label,
        "device": {"name": device or "this machine", "title": title, "processes": processes, "machine": machine},
        "parameters": plan.parameters,
        "stages": stages,
        "total": _total(plan, stages),
        "memory": memory,
        "basis": [*plan.notes, *durations.basis, *_remarks(on_gpu, in_fp32_instead, slowdown)],
        "warnings": memory_warnings(plan, memory),
    }


def find_gpu(name: str | None) -> Gpu | None:
    """The GPU of that name; None for None. Raises RcdeployError, with the nearest name, for one that is not listed."""
    if name is None or name in GPUS:
        return GPUS[name] if name else None
    nearest = difflib.get_close_matches(name.lower(), GPUS, 1, 0.5)
    hint = f"Did you mean {nearest[0]}? " if nearest else ""
    raise RcdeployError(
        f"{name!r} is not a known device",
        fix=f"{hint}Known are {', '.join(GPUS)}; without --device this machine is measured.",
    )


def _on_device(
    plan: Plan, gpu: Gpu | None, machine: dict[str, Any], measure: bool | None, seconds: float
) -> tuple[str, float, Durations]:
    """-> title of the device, its memory in bytes, durations. gpu: a named one; None: this machine's GPU or processor.

    machine: facts of this machine.
    """
    if gpu:
        return gpu.title, gpu.memory_gb * 1e9, published(plan, gpu)
    if torch.cuda.is_available():
        own = machine["gpus"][0]
        return own["name"], own["memory_gb"] * 1e9, measured(plan, "cuda", seconds)
    title = f"{machine['processor']}, {torch.get_num_threads()} threads"
    memory = machine["memory_gb"] * 1e9
    return title, memory, on_processor(plan, measure, seconds, memory)


def _slowdown(processes: int) -> float:
    """How much longer a call takes a process that shares the processor with others: cores are divided among threads."""
    return max(1.0, processes * torch.get_num_threads() / usable_cores()) if processes > 1 else 1.0


def _stage_costs(plan: Plan, stage: Stage, durations: Durations, slowdown: float) -> dict[str, Any]:
    """A stage as plain data; its seconds are those of the slowest process.

    slowdown: of a call in one of several processes, beside the timed one, which was alone.
    """
    calls = plan.calls(stage)
    shares = plan.num_processes if stage.shared else 1
    alone = sum(n * durations.seconds[name] / (1 if name == "update" else shares) for name, n in calls.items())
    return {
        "stage": stage.name,
        "amount": stage.amount,
        "macs": round(sum(n * plan.costs[name].macs for name, n in calls.items() if name != "update")),
        "disk_bytes": stage.disk_bytes,
        "seconds": alone * (slowdown if stage.shared else 1),
    }


def _total(plan: Plan, stages: list[dict[str, Any]]) -> dict[str, Any]:
    calls_per_step = plan.recipe.distill.teacher_calls
    teacher_samples = [
        (u, stage.samples[u] * (calls_per_step if u == "step" else 1))
        for stage in plan.stages
        for u in ("teacher", "step")
        if u in stage.samples
    ]
    return {
        "macs": sum(s["macs"] for s in stages),
        "disk_bytes": sum(s["disk_bytes"] for s in stages),
        "seconds": sum(s["seconds"] for s in stages),
        "teacher_rows": round(sum(samples for _, samples in teacher_samples)),
        "teacher_calls": round(sum(samples / plan.batch_sizes[unit] for unit, samples in teacher_samples)),
    }


def _remarks(on_gpu: bool, in_fp32_instead: bool, slowdown: float) -> list[str]:
    remarks = []
    if slowdown > 1:
        remarks.append(f"Processes share {usable_cores()} cores: a call takes {slowdown:g} times as long as alone.")
    if in_fp32_instead:
        remarks.append("No GPU here: the run would train in fp32 instead of fp16, and is counted so.")
    added = f"times {GPU_ALLOWANCE:g} (calibrated on BK-SDM-Base's 53 GB)" if on_gpu else "plus that of the libraries"
    remarks.append(f"Memory: tensors alive at once, counted by a training step on shapes alone, {added}.")
    return remarks
