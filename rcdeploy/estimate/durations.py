"""Seconds of a call of each unit of work: from a GPU's published rate, or measured on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rcdeploy_runtime.errors import RcdeployError

from ..machine import Gpu, gemm_rate
from .memory import memory_bytes
from .plan import Plan
from .work_units import build_networks, make_units, time_units

TRAINING_EFFICIENCY = 0.149
"""of a GPU's fp16 rate. Calibrated: BK-SDM-Base, 50,000 steps of 256 in 300 hours on an A100"""
SAMPLING_EFFICIENCY = 0.33
"""Calibrated: BK-SDM-Small, 30,000 images of 25 steps, one at a time, in 10 hours on an RTX 3090"""
FP32_EFFICIENCY = 0.5
"""of a GPU's plain fp32 rate. Assumed"""
OPERATION_SECONDS = 1e-5
"""a GPU never takes less for an operation, started from Python. Assumed; it decides for small networks"""
CPU_EFFICIENCY = 0.6
"""of this machine's GEMM rate, where networks are too large to be timed. Measured, c-micro of SD-1.4: 0.57 to 0.66"""
MAX_UNASKED_SECONDS = 30
"""networks are timed without --measure if that should take no longer"""


@dataclass(frozen=True)
class Durations:
    """seconds: of a call of each unit of work. basis: where they come from, a sentence each."""

    seconds: dict[str, float]
    basis: list[str]


def published(plan: Plan, gpu: Gpu) -> Durations:
    """A unit's MACs over the GPU's rate, or its operations if those take longer."""
    in_half = plan.dtype != torch.float32
    seconds = {"update": 0.0}
    for name, cost in plan.costs.items():
        if in_half and name not in ("encode", "decode", "decoder"):  # the VAE is in fp32
            efficiency = TRAINING_EFFICIENCY if name in ("step", "leap") else SAMPLING_EFFICIENCY
            rate = gpu.half_tflops * 1e12 * efficiency
        else:
            rate = gpu.fp32_tflops * 1e12 * FP32_EFFICIENCY
        seconds[name] = max(2 * cost.macs / rate, cost.operations * OPERATION_SECONDS)
    basis = [
        f"Published: {gpu.title}, {gpu.half_tflops:g} TFLOPS in fp16, {gpu.fp32_tflops:g} in fp32 ({gpu.source}).",
        f"Calibrated: {TRAINING_EFFICIENCY:.1%} of the fp16 rate in training (BK-SDM-Base's 300 hours on an A100), "
        f"{SAMPLING_EFFICIENCY:.0%} in sampling (BK-SDM's 10 hours for 30,000 images on an RTX 3090).",
        f"Assumed: {FP32_EFFICIENCY:.0%} of the fp32 rate; at least {OPERATION_SECONDS * 1e6:g} us an operation; "
        "processes share cache and training evenly; the optimizer, loading, the pool and checkpoints take no time.",
    ]
    return Durations(seconds, basis)


def measured(plan: Plan, device: str, seconds: float) -> Durations:
    """Builds the networks with random weights and times the units that the recipe needs, for about `seconds`.

    Raises RcdeployError when the GPU has too little memory.
    """
    try:
        networks = build_networks(plan.shapes.configs, plan.student, plan.recipe, device, plan.dtype)
        units = make_units(networks, plan.recipe, plan.sizes)
        times = time_units({name: units[name] for name in plan.needed_units}, networks.device, seconds)
    except torch.OutOfMemoryError as error:
        raise RcdeployError(
            f"this machine's GPU has too little memory for a step of {plan.sizes.micro_batch_size} samples: {error}",
            fix="Give a smaller train.micro_batch_size with --set, or name a larger --device.",
        ) from error
    basis = [
        f"Measured: {', '.join(times)} with random weights on this machine just now, for about {seconds:g} seconds.",
        "Not in the hours: loading, building the pool, writing checkpoints, and the machine's other work.",
    ]
    return Durations(times, basis)


def on_processor(plan: Plan, measure: bool | None, seconds: float, memory: float) -> Durations:
    """Measured, or by the rate of matrix products on this machine where that would take long.

    Args:
        measure: whether to time the networks; None: if that takes MAX_UNASKED_SECONDS at most and fits in memory.
        seconds: of timing.
        memory: bytes of this machine.
    """
    gemm = gemm_rate(seconds=min(1.0, seconds))
    rate = gemm * CPU_EFFICIENCY
    if measure is None:
        timing = sum(3 * plan.costs[name].macs / rate for name in plan.needed_units if name != "update")
        measure = timing < MAX_UNASKED_SECONDS and memory_bytes(plan, on_gpu=False)["peak"] < memory
    if measure:
        return measured(plan, "cpu", seconds)
    times = {name: cost.macs / rate for name, cost in plan.costs.items()} | {"update": 0.0}
    basis = [
        f"Measured: {gemm / 1e9:.0f} GMAC/s of a matrix product in fp32 on this machine just now, of which networks of "
        f"this size reach {CPU_EFFICIENCY:.0%} (calibrated on two cores of one machine).",
        "--measure times the networks themselves, which takes some minutes and their memory.",
    ]
    return Durations(times, basis)
