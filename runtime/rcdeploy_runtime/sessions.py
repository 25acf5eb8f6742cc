"""One interface to what executes a network: named arrays in, the first output out.

ONNX Runtime is the one that is always there; OpenVINO and TensorRT are extras (openvino_session.py, trt_session.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from .errors import RcdeployError
from .noise_schedule import Array

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
PROVIDERS = {"cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider", "directml": "DmlExecutionProvider"}


class Session(Protocol):
    """A loaded network. May be called from several threads at once.

    rows: the batch it was built for, or None when any will do. device: where it runs, in words.
    """

    rows: int | None
    device: str

    def run(self, inputs: dict[str, Array]) -> Array:
        """Arrays by input name (cast to what the network takes) -> its first output, float32."""
        ...


class OnnxSession:
    def __init__(self, file: Path, device: str = "auto", threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self.device, providers = _providers(device)
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            raise RcdeployError(f"ONNX Runtime cannot load {file}: {error}") from error
        self._types = {i.name: TYPES.get(i.type, np.float32) for i in self._session.get_inputs()}
        self._output = self._session.get_outputs()[0].name
        first = self._session.get_inputs()[0].shape[0]
        self.rows = first if isinstance(first, int) else None

    def run(self, inputs: dict[str, Array]) -> Array:
        cast = {name: np.asarray(array, self._types[name], order="C") for name, array in inputs.items()}
        output: Array = self._session.run([self._output], cast)[0]
        return output.astype(np.float32, copy=False)


def _providers(device: str) -> tuple[str, list[str]]:
    there = onnxruntime.get_available_providers()
    if device == "auto":
        device = next((d for d in ("cuda", "directml") if PROVIDERS[d] in there), "cpu")
    if device == "cpu":
        return device, ["CPUExecutionProvider"]
    if device not in PROVIDERS:
        raise RcdeployError(
            f"there is no device {device!r} for ONNX", fix=f"One of: auto, cpu, {', '.join(PROVIDERS)}."
        )
    if PROVIDERS[device] not in there:
        raise RcdeployError(
            f"this onnxruntime has no {PROVIDERS[device]}",
            fix="Install onnxruntime-gpu (cuda) or onnxruntime-directml in place of onnxruntime, or use device='cpu'.",
        )
    return device, [PROVIDERS[device], "CPUExecutionProvider"]


class Batched:
    """A session that takes any number of rows: one built for a fixed number gets them in parts, the last padded."""

    def __init__(self, session: Session, per_batch: tuple[str, ...]) -> None:
        """per_batch: inputs that have the batch as their first dimension."""
        self.session, self.per_batch = session, per_batch

    def __call__(self, **inputs: Array) -> Array:
        fixed, n = self.session.rows, len(inputs[self.per_batch[0]])
        if fixed is None or fixed == n:
            return self.session.run(inputs)
        parts = []
        for start in range(0, n, fixed):
            rows = [min(i, n - 1) for i in range(start, start + fixed)]
            part = {name: a[rows] if name in self.per_batch else a for name, a in inputs.items()}
            parts.append(self.session.run(part)[: n - start])
        return np.concatenate(parts)


def open_session(folder: Path, kind: str, device: str, threads: int | None, precision: str = "fp32") -> Session:
    """The network in a component's folder of a package of this kind: onnx, openvino or trt.

    precision: what the package says of this component; it decides what OpenVINO computes in, graphs carry their own.
    """
    if kind == "onnx":
        return OnnxSession(folder / "model.onnx", device, threads)
    if kind == "openvino":
        from .openvino_session import OpenVinoSession

        return OpenVinoSession(folder, device, threads, "bf16" if precision == "bf16" else "f32")
    if kind == "trt":
        from .trt_session import TrtSession

        return TrtSession(folder)
    raise RcdeployError(f"a package of format {kind!r} is not known to this runtime", fix="Upgrade rcdeploy-runtime.")
