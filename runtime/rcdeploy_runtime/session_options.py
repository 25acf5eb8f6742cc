"""How a package's networks are executed: what executes them, where, with how many threads, in which precision."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import RcdeployError
from .generation import check_memory, whole_number
from .limits import MAX_THREADS

BACKENDS = {
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "trt": ("tensorrt",),
    "executorch": ("executorch",),
}
"""a package's format -> what executes it, the default first"""
PRECISIONS = ("fp32", "bf16", "fp16")
"""that OpenVINO computes in"""


@dataclass(frozen=True)
class SessionOptions:
    """Options of loading a package; None and auto leave the choice to the package and to the library.

    Attributes:
        device: auto, cpu, cuda ...
        threads: of a CPU; None takes the library's default, all cores.
        memory_gb: most memory that each network may take beside its weights; of ONNX Runtime on a CPU only.
        backend: onnxruntime, openvino or tensorrt; OpenVINO executes ONNX packages too.
        precision: that OpenVINO computes in: fp32, bf16 or fp16; None takes that of the package's networks.
    """

    device: str = "auto"
    threads: int | None = None
    memory_gb: float | None = None
    backend: str | None = None
    precision: str | None = None

    def checked(self, package_format: str) -> SessionOptions:
        """These options, with the backend by name. Raises RcdeployError for what a package of this format cannot do."""
        if not isinstance(self.device, str):
            raise RcdeployError(f"device is {self.device!r}; it must be a string: auto, cpu, cuda ...")
        threads = None if self.threads is None else whole_number("threads", self.threads, 1, MAX_THREADS)
        backends = BACKENDS[package_format]
        backend = backends[0] if self.backend is None else self.backend
        if backend not in backends:
            raise RcdeployError(
                f"backend is {backend!r}; a package of the format {package_format} is executed by "
                f"{' or '.join(backends)}"
            )
        if self.precision is not None and self.precision not in PRECISIONS:
            raise RcdeployError(f"precision is {self.precision!r}; {', '.join(PRECISIONS)} are allowed")
        if self.precision is not None and backend != "openvino":
            raise RcdeployError(
                f"precision is {self.precision!r}, which only OpenVINO is told: networks of {backend} carry their own",
                fix="Leave it out, or take the backend openvino.",
            )
        if self.memory_gb is not None:
            check_memory(self.memory_gb, package_format)
            if backend != "onnxruntime":
                raise RcdeployError(f"memory_gb does not limit {backend}, only onnxruntime")
        return replace(self, threads=threads, backend=backend)

    def __str__(self) -> str:
        """ "openvino bf16, 2 threads"."""
        name = " ".join(filter(None, (self.backend or "the package's own backend", self.precision)))
        device = "" if self.device.lower() in ("auto", "cpu") else f", {self.device}"
        plural = "" if self.threads == 1 else "s"
        return f"{name}{device}" + ("" if self.threads is None else f", {self.threads} thread{plural}")
