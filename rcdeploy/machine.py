"""Facts of this machine (processor, memory, versions, load) and the rate of its matrix products."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("rcdeploy", "torch", "diffusers", "transformers", "accelerate", "numpy"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13"),
)
"""packages whose versions timings depend on; those that are not installed are left out"""


@dataclass(frozen=True)
class Gpu:
    """Published rates without sparsity.

    Attributes:
        half_tflops: 10^12 floating point operations a second of the tensor cores, fp16 with fp32 sums.
        fp32_tflops: the same without tensor cores.
        memory_gb: in 10^9 bytes.
    """

    title: str
    half_tflops: float
    fp32_tflops: float
    memory_gb: float
    source: str


GPUS = {
    "t4": Gpu("NVIDIA T4", 65, 8.1, 16, "NVIDIA T4 datasheet"),
    "v100-32g": Gpu("NVIDIA V100 SXM2 32 GB", 125, 15.7, 32, "NVIDIA V100 datasheet"),
    "rtx-3090": Gpu("NVIDIA GeForce RTX 3090", 71, 35.6, 24, "NVIDIA Ampere GA102 whitepaper"),
    "rtx-4090": Gpu("NVIDIA GeForce RTX 4090", 165.2, 82.6, 24, "NVIDIA Ada GPU architecture whitepaper"),
    "a6000": Gpu("NVIDIA RTX A6000", 154.8, 38.7, 48, "NVIDIA RTX A6000 datasheet"),
    "a10": Gpu("NVIDIA A10", 125, 31.2, 24, "NVIDIA A10 datasheet"),
    "l4": Gpu("NVIDIA L4", 121, 30.3, 24, "NVIDIA L4 datasheet"),
    "l40s": Gpu("NVIDIA L40S", 362, 91.6, 48, "NVIDIA L40S datasheet"),
    "a100-40g": Gpu("NVIDIA A100 40 GB", 312, 19.5, 40, "NVIDIA A100 datasheet"),
    "a100-80g": Gpu("NVIDIA A100 80 GB", 312, 19.5, 80, "NVIDIA A100 datasheet"),
    "h100": Gpu("NVIDIA H100 SXM 80 GB", 989, 67, 80, "NVIDIA H100 datasheet"),
    "h200": Gpu("NVIDIA H200 SXM 141 GB", 989, 67, 141, "NVIDIA H200 datasheet"),
}


def describe() -> dict[str, Any]:
    """Facts for a result file: processor, cores (that this process may use), memory_gb, gpus, os, python, versions."""
    import psutil  # type: ignore[import-untyped]
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
    }


def usable_cores() -> int:
    """Logical cores that this process may run on: fewer than the machine's inside a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_warning() -> str | None:
    """A warning if other processes use the machine so much that timings are not to be trusted, else None."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = usable_cores()
    if load < cores / 2:
        return None
    return f"This machine was busy (load {load:.1f} on {cores} cores): the measured times are too long and scatter."


def gemm_rate(threads: int | None = None, seconds: float = 1.0, size: int = 2048) -> float:
    """fp32 multiply-accumulates a second of torch.mm on the processor.

    The best of several products, not the mean: other work on the machine can only slow it down.

    Args:
        threads: by default as many as torch uses now.
        seconds: to measure for, at least three products.
        size: rows and columns of the square matrices.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        a, b, out = (torch.ones(size, size) for _ in range(3))
        torch.mm(a, b, out=out)
        best = float("inf")
        end = time.perf_counter() + seconds
        count = 0
        while count < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - start)
            count += 1
    finally:
        torch.set_num_threads(before)
    return float(size**3 / best)


def _processor() -> str:
    """The processor's model name, or its architecture where the system does not report one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):  # x86 and many ARM boards
            return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
