"""What a recipe will cost, before anything of it is made: calls, multiply-accumulates, bytes on disk, memory, hours.

Calls and bytes follow from the recipe and its captions (workload). MACs and memory come from running the code that
trains on the meta device (on_meta, units). Seconds are those MACs over a GPU's published rate and an efficiency, or are
measured on this machine, a call of each network at a time.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

import torch

from rcdeploy_runtime.errors import RcdeployError

from ..bench.macs import parameters
from ..distill.run import accumulation_steps
from ..machine import GPUS, Gpu, describe, gemm_rate
from ..recipe import Recipe
from ..student.spec import student_config
from .on_meta import Cost, cost_of
from .work_units import build_networks, make_units, time_units
from .workload import Shapes, Stage, count_prompts, stages, teacher_shapes, text_cache_bytes

TRAINING_EFFICIENCY = 0.149
"""of a GPU's fp16 rate. Calibrated: BK-SDM-Base, 50,000 steps of 256 in 300 hours on an A100"""
SAMPLING_EFFICIENCY = 0.33
"""Calibrated: BK-SDM-Small, 30,000 pictures of 25 steps, one at a time, in 10 hours on an RTX 3090"""
FP32_EFFICIENCY = 0.5
"""of a GPU's plain fp32 rate. Assumed"""
OPERATION_SECONDS = 1e-5
"""a GPU never takes less for an operation, started from Python. Assumed; it decides for small networks"""
CPU_EFFICIENCY = 0.6
"""of this machine's GEMM rate, where networks are too large to be timed. Measured, c-micro of SD-1.4: 0.57 to 0.66"""
GPU_ALLOWANCE = 1.5
"""what a GPU takes over the tensors alive: context, workspaces of convolutions, fragments. Calibrated: BK-SDM-Base
at 64 samples at once, 53 GB"""
LIBRARIES_BYTES = 440_000_000
"""of a process that has imported torch, diffusers and transformers and done nothing yet. Measured"""
QUICK_SECONDS = 30
"""networks are timed if that should take no longer"""
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """What does not depend on the device. micro: samples at once. sizes: parameters. costs: of units of work."""

    recipe: Recipe
    shapes: Shapes
    student: dict[str, Any]
    micro: int
    accumulation: int
    processes: int
    dtype: torch.dtype
    sizes: dict[str, int]
    costs: dict[str, Cost]
    rows: dict[str, int]
    stages: list[Stage]
    text_cache: int
    notes: list[str]


def estimate(
    recipe: Recipe,
    device: str | None = None,
    *,
    processes: int = 1,
    measure: bool | None = None,
    seconds: float = 15.0,
) -> dict[str, Any]:
    """The estimate as plain data: device, stages, total, memory, basis, warnings. Bytes, seconds, MACs.

    device: a key of machine.GPUS; None: this machine. processes: GPUs that share the work. measure: time the networks
    on this machine; by default if that takes half a minute at most. seconds: of timing. Raises RcdeployError for
    an unknown device and for what the run itself would refuse.
    """
    gpu = find_gpu(device)
    if gpu and measure:
        raise RcdeployError(f"only this machine can be measured, not {gpu.title}", fix="Leave out one of the two.")
    on_gpu = gpu is not None or torch.cuda.is_available()
    dtype = DTYPES[recipe.train.mixed_precision]
    lowered = dtype == torch.float16 and not on_gpu
    plan = make_plan(recipe, processes, torch.float32 if lowered else dtype)
    facts = describe()
    if gpu:
        each, basis = _published(plan, gpu)
        title, has = gpu.title, gpu.memory_gb * 1e9
    elif on_gpu:
        each, basis = _measured(plan, "cuda", seconds)
        title, has = facts["gpus"][0]["name"], facts["gpus"][0]["memory_gb"] * 1e9
    else:
        each, basis = _on_processor(plan, measure, seconds, facts["memory_gb"] * 1e9)
        title, has = f"{facts['processor']}, {torch.get_num_threads()} threads", facts["memory_gb"] * 1e9
    if lowered:
        basis.append("No GPU here: the run would train in fp32 instead of fp16, and so it is counted.")
    around = f"times {GPU_ALLOWANCE:g} (calibrated on BK-SDM-Base's 53 GB)" if on_gpu else "and what the libraries take"
    basis.append(f"Memory: tensors alive at once, counted by a training step without numbers, {around}.")
    listed = [_stage(plan, stage, each) for stage in plan.stages]
    memory = {**_memory(plan, on_gpu), "device": int(has)}
    asked = [(name, s.rows[name]) for s in plan.stages for name in ("teacher", "step") if name in s.rows]
    return {
        "recipe": recipe.name,
        "student": recipe.student.name if recipe.student.width is None else f"width {recipe.student.width:g}",
        "device": {"name": device or "this machine", "title": title, "processes": processes, "machine": facts},
        "parameters": plan.sizes,
        "stages": listed,
        "total": {
            "macs": sum(s["macs"] for s in listed),
            "disk_bytes": sum(s["disk_bytes"] for s in listed),
            "seconds": sum(s["seconds"] for s in listed),
            "teacher_rows": round(sum(n for _, n in asked)),
            "teacher_calls": round(sum(n / plan.rows[name] for name, n in asked)),
        },
        "memory": memory,
        "basis": [*plan.notes, *basis],
        "warnings": _warnings(plan, memory),
    }


def find_gpu(name: str | None) -> Gpu | None:
    if name is None or name in GPUS:
        return GPUS[name] if name else None
    near = difflib.get_close_matches(name.lower(), GPUS, 1, 0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise RcdeployError(
        f"nothing is known of a device {name!r}",
        fix=f"{hint}Known are {', '.join(GPUS)}; without --device it is this machine, measured.",
    )


def make_plan(recipe: Recipe, processes: int, dtype: torch.dtype) -> Plan:
    """dtype: the teacher's, and of mixed precision. Raises RcdeployError for what the run itself would refuse."""
    shapes = teacher_shapes(recipe.teacher.path)
    student, notes = student_config(recipe.student.spec, shapes.configs["unet"])
    accumulation = accumulation_steps(recipe.train, processes)
    micro = recipe.train.global_batch_size // (accumulation * processes)
    prompts = count_prompts(recipe)
    networks = build_networks(shapes.configs, student, recipe, "meta", dtype)
    units = make_units(networks, recipe, shapes.latent(recipe.cache.resolution), shapes.length, micro)
    half = dtype if dtype != torch.float32 else None
    costs = {n: cost_of(u.run, autocast=half if u.mixed else None) for n, u in units.items() if n != "update"}
    if accumulation > 1:  # later parts of a step find the gradients of earlier ones in memory
        first, later = costs["step"], cost_of(units["step"].run, autocast=half)
        costs["step"] = replace(first, peak_bytes=max(first.peak_bytes, first.kept_bytes + later.peak_bytes))
    sizes = {name: parameters(getattr(networks, name)) for name in ("teacher", "text_encoder", "vae")}
    sizes |= {"student": parameters(networks.student.unet), "trained": parameters(networks.student)}
    work = stages(recipe, shapes, prompts, in_half=half is not None, parameters=sizes)
    cached = text_cache_bytes(recipe, shapes, prompts, half is not None)
    rows = {name: unit.rows for name, unit in units.items()}
    said = [*shapes.notes, *prompts.notes, *notes]
    return Plan(recipe, shapes, student, micro, accumulation, processes, dtype, sizes, costs, rows, work, cached, said)


def _stage(plan: Plan, stage: Stage, each: dict[str, float]) -> dict[str, Any]:
    """each: seconds of one call of a unit of work."""
    calls = {name: rows / plan.rows[name] for name, rows in stage.rows.items() if rows}
    share = plan.processes if stage.shared else 1
    return {
        "stage": stage.name,
        "amount": stage.amount,
        "macs": round(sum(n * plan.costs[name].macs for name, n in calls.items() if name != "update")),
        "disk_bytes": stage.disk,
        "seconds": sum(n * each[name] / (1 if name == "update" else share) for name, n in calls.items()),
    }


def _used(plan: Plan) -> list[str]:
    return [name for name in (*plan.costs, "update") if any(stage.rows.get(name) for stage in plan.stages)]


def _published(plan: Plan, gpu: Gpu) -> tuple[dict[str, float], list[str]]:
    """Seconds of a unit of work: its MACs over the GPU's rate, or its operations if those take longer."""
    half, each = plan.dtype != torch.float32, {"update": 0.0}
    for name, cost in plan.costs.items():
        if half and name not in ("encode", "decode"):  # the VAE is in fp32
            efficiency = TRAINING_EFFICIENCY if name == "step" else SAMPLING_EFFICIENCY
            rate = gpu.half_tflops * 1e12 * efficiency
        else:
            rate = gpu.fp32_tflops * 1e12 * FP32_EFFICIENCY
        each[name] = max(2 * cost.macs / rate, cost.operations * OPERATION_SECONDS)
    basis = [
        f"Published: {gpu.title}, {gpu.half_tflops:g} TFLOPS in fp16, {gpu.fp32_tflops:g} in fp32 ({gpu.source}).",
        f"Calibrated: {TRAINING_EFFICIENCY:.1%} of the fp16 rate in training (BK-SDM-Base's 300 hours on an A100), "
        f"{SAMPLING_EFFICIENCY:.0%} in sampling (BK-SDM's 10 hours for 30,000 pictures on an RTX 3090).",
        f"Assumed: {FP32_EFFICIENCY:.0%} of the fp32 rate; {OPERATION_SECONDS * 1e6:g} us an operation at least; "
        "processes share cache and training evenly; the optimizer, loading, the pool and checkpoints take no time.",
    ]
    return each, basis


def _measured(plan: Plan, device: str, seconds: float) -> tuple[dict[str, float], list[str]]:
    """Builds the networks with random weights and times what the recipe needs."""
    try:
        networks = build_networks(plan.shapes.configs, plan.student, plan.recipe, device, plan.dtype)
        shape = plan.shapes.latent(plan.recipe.cache.resolution)
        units = make_units(networks, plan.recipe, shape, plan.shapes.length, plan.micro)
        each = time_units({name: units[name] for name in _used(plan)}, networks.device, seconds)
    except torch.OutOfMemoryError as error:
        raise RcdeployError(
            f"this machine's GPU has too little memory for a step of {plan.micro}: {error}",
            fix="Give a smaller train.micro_batch_size with --set, or name a larger --device.",
        ) from error
    basis = [
        f"Measured: {', '.join(each)} with random weights on this machine just now, for about {seconds:g} seconds.",
        "Not in the hours: loading, building the pool, writing checkpoints, and whatever else the machine has to do.",
    ]
    return each, basis


def _on_processor(
    plan: Plan, measure: bool | None, seconds: float, memory: float
) -> tuple[dict[str, float], list[str]]:
    rate = gemm_rate(seconds=min(1.0, seconds)) * CPU_EFFICIENCY
    used = _used(plan)
    needed = sum(3 * plan.costs[name].macs / rate for name in used if name != "update")
    fits = _memory(plan, False)["peak"] < memory
    if measure if measure is not None else (needed < QUICK_SECONDS and fits):
        return _measured(plan, "cpu", seconds)
    each = {name: cost.macs / rate for name, cost in plan.costs.items()} | {"update": 0.0}
    return each, [
        f"Measured: {rate / CPU_EFFICIENCY / 1e9:.0f} GMAC/s of a matrix product in fp32 on this machine just now, of "
        f"which networks of this size reach {CPU_EFFICIENCY:.0%} (calibrated on two cores of one machine).",
        "--measure times the networks themselves, which takes some minutes and their memory.",
    ]


def _memory(plan: Plan, on_gpu: bool) -> dict[str, int]:
    """Bytes of tensors on the device at once, by what they are and by what is going on; peak: with all around them."""
    n, width = plan.sizes, plan.dtype.itemsize
    held = {
        "teacher": (n["teacher"] + n["text_encoder"]) * width,
        "student": 4 * n["trained"],
        "optimizer": 8 * n["trained"],
        "ema": 4 * n["student"],
    }
    gradients, static = 4 * n["trained"], sum(held.values()) + (0 if on_gpu else plan.text_cache)
    static += gradients if plan.processes > 1 else 0  # DDP's buckets are a copy
    step = plan.costs["step"].peak_bytes
    looks = plan.recipe.evaluate.every > 0
    source = "teacher" if plan.recipe.cache.source == "teacher" else "encode"
    # the fused AdamW needs nothing of its own; a checkpoint on the processor copies both moments
    after = gradients if on_gpu else 8 * n["trained"]
    drawing = (
        4 * n["vae"]
        + (2 if on_gpu else 4) * n["student"]
        + max(plan.costs[k].peak_bytes for k in ("student", "decode"))
    )
    going_on = {
        "caching": held["teacher"] + (0 if on_gpu else held["student"]) + plan.costs[source].peak_bytes,
        "training": static + max(step, after),
        "drawing": static + drawing if looks else 0,
    }
    most = max(going_on.values())
    peak = most * GPU_ALLOWANCE if on_gpu else most + LIBRARIES_BYTES
    return {
        **held,
        "gradients": gradients,
        "activations": step - gradients,
        **going_on,
        "tensors": most,
        "peak": int(peak),
    }


def _warnings(plan: Plan, memory: dict[str, int]) -> list[str]:
    if memory["peak"] <= memory["device"]:
        return []
    surely = memory["tensors"] > memory["device"]
    verb = "does not fit" if surely else "may not fit"
    tensors, peak, has = (memory[key] / 1e9 for key in ("tensors", "peak", "device"))
    said = f"It {verb}: {tensors:.1f} GB of tensors, {peak:.1f} GB with all around them; the device has {has:.0f} GB."
    ways = []
    if plan.micro > 1 and max(memory["training"], memory["caching"], memory["drawing"]) == memory["training"]:
        ways.append(f"train.micro_batch_size below {plan.micro}")
    if not plan.recipe.train.gradient_checkpointing:
        ways.append("train.gradient_checkpointing = true")
    if memory["caching"] == memory["tensors"]:
        ways.append(f"cache.batch_size below {plan.recipe.cache.batch_size}")
    if memory["drawing"] == memory["tensors"]:
        ways.append("fewer evaluate.prompts, or evaluate.every = 0")
    ways.append("a smaller student, or a device with more memory")
    return [said + " Change: " + "; ".join(ways) + "."]
