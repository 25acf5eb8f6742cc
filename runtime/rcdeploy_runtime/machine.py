"""What a measured time depends on beside the package: the processor, the GPUs, and the versions of what executes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

DISTRIBUTIONS = (
    "rcdeploy",  # has the runtime in it
    "rcdeploy-runtime",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)
TOPOLOGY = Path("/sys/devices/system/cpu")
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Machine:
    """cores: logical ones that this process may use, fewer than the machine's in a container or under taskset."""

    system: str
    architecture: str
    processor: str
    cores: int
    gpus: tuple[str, ...]

    @property
    def key(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def this_machine() -> Machine:
    return Machine(platform.system(), platform.machine(), _processor(), len(usable_cores()), _gpus())


def versions() -> dict[str, str]:
    """Of the runtime, and of what executes networks, as far as it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Of those that this process may use; where the system does not tell threads of a core apart, all of them."""
    cores = usable_cores()
    siblings = set()
    for core in cores:
        try:
            siblings.add((TOPOLOGY / f"cpu{core}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            return len(cores)
    return len(siblings)


def available_memory() -> int | None:
    """Bytes that a new process can take without others' going to disk; None where the system does not say."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def peak_memory() -> int | None:
    """Largest resident bytes of this process so far; None where the system does not say."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM")  # getrusage's would be the parent's at first


def _processor() -> str:
    for name, value in _fields(Path("/proc/cpuinfo")):
        if name in ("model name", "Model"):  # x86 and many ARM boards
            return value
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    """Names of NVIDIA's, of which the driver tells without being woken (Linux)."""
    try:
        files = sorted(NVIDIA_GPUS.glob("*/information"))
    except OSError:
        return ()
    return tuple(value for file in files for name, value in _fields(file) if name == "Model")


def _kilobytes(file: Path, name: str) -> int | None:
    value = next((value for found, value in _fields(file) if found == name), None)
    return int(value.split()[0]) * 1024 if value else None


def _fields(file: Path) -> Iterator[tuple[str, str]]:
    """(name, value) of the lines of a file in /proc; none where it is not there."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()
