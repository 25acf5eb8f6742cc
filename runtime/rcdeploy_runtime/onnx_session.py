"""ONNX Runtime behind the session interface."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array
from .onnx_memory import memory_limit
from .onnx_runtime import import_onnxruntime

onnxruntime = import_onnxruntime()

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
PROVIDERS = {"cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider", "directml": "DmlExecutionProvider"}
LOG_ERRORS_ONLY = 3


class OnnxSession:
    """Args:
        file: model.onnx.
        device: auto, cpu, cuda, coreml or directml.
        threads: of a CPU; None takes all.
        memory_gb: most memory of a CPU for arrays, beside the weights; None takes what there is.

    Raises:
        RcdeployError: the file cannot be loaded, or this onnxruntime has no such device, or cannot use it here.
    """

    def __init__(
        self, file: Path, device: str = "auto", threads: int | None = None, memory_gb: float | None = None
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        self.device, providers = _providers(device)
        self._file = file
        try:
            with memory_limit(options, memory_gb) as further:
                self._session = onnxruntime.InferenceSession(str(file), options, providers=providers, **further)
            self.device = _used_device(self._session.get_providers(), self.device, device)
            inputs = self._session.get_inputs()
            self._types = {i.name: TYPES.get(i.type, np.float32) for i in inputs}
            self._output = self._session.get_outputs()[0].name
            first = inputs[0].shape[0]
        except RcdeployError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            raise RcdeployError(f"ONNX Runtime cannot load {file}: {error}") from error
        self.batch_size = first if isinstance(first, int) else None

    def run(self, inputs: dict[str, Array]) -> Array:
        return self.run_for([self._output], inputs)[0]

    def run_for(self, outputs: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        try:
            feed = {name: np.asarray(array, self._types[name], order="C") for name, array in inputs.items()}
            return [array.astype(np.float32, copy=False) for array in self._session.run(list(outputs), feed)]
        except Exception as error:
            raise RcdeployError(
                f"ONNX Runtime cannot run {self._file}: {error}",
                fix="Out of memory: generate fewer or smaller images at once, or raise memory_gb if you have set it. "
                "Otherwise export the package anew.",
            ) from error


def available_devices() -> list[str]:
    """Devices of this onnxruntime by name; that of auto comes first."""
    available = onnxruntime.get_available_providers()
    auto = _providers("auto")[0]
    return list(dict.fromkeys([auto, "cpu", *(d for d, provider in PROVIDERS.items() if provider in available)]))


def _providers(device: str) -> tuple[str, list[str]]:
    """(device, ONNX Runtime's execution providers for it)."""
    available = onnxruntime.get_available_providers()
    if device == "auto":
        device = next((d for d in ("cuda", "directml") if PROVIDERS[d] in available), "cpu")
    if device == "cpu":
        return device, ["CPUExecutionProvider"]
    if device not in PROVIDERS:
        raise RcdeployError(
            f"device is {device!r}, which ONNX Runtime does not know", fix=f"Use auto, cpu, {', '.join(PROVIDERS)}."
        )
    if PROVIDERS[device] not in available:
        raise RcdeployError(
            f"this onnxruntime has no {PROVIDERS[device]}",
            fix="Install onnxruntime-gpu (cuda) or onnxruntime-directml in place of onnxruntime, or use device='cpu'.",
        )
    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()  # CUDA's libraries in site-packages, where torch has not loaded them
    return device, [PROVIDERS[device], "CPUExecutionProvider"]


def _used_device(providers: Sequence[str], device: str, requested: str) -> str:
    """The device that a session runs on: ONNX Runtime goes on with the processor where another cannot be started.

    providers: of the session. device: that was tried. Raises RcdeployError if it was requested by name.
    """
    if device == "cpu" or PROVIDERS[device] in providers:
        return device
    if requested == "auto":
        return "cpu"
    raise RcdeployError(
        f"ONNX Runtime cannot start {PROVIDERS[device]} on this machine",
        fix="Its messages above name the library or the GPU that is missing. For CUDA: pip install "
        "'onnxruntime-gpu[cuda,cudnn]', for the CUDA version of the driver. Or use device='cpu'.",
    )
