"""One interface to whatever executes a network: named arrays in, arrays out.

ONNX Runtime (onnx_session.py) always comes along; OpenVINO, TensorRT and ExecuTorch are extras (openvino_session.py,
trt_session.py, executorch_session.py). Each is imported when a package needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .compiled_networks import CompiledNetworks
from .errors import RcdeployError
from .noise_schedule import Array
from .session_options import BACKENDS, SessionOptions


class Session(Protocol):
    """A loaded network. May be called from several threads at once.

    batch_size: the one it was built for, or None when any will do. device: the name of where it runs.
    """

    batch_size: int | None
    device: str

    def run(self, inputs: dict[str, Array]) -> Array:
        """Arrays by input name (cast to what the network takes) -> its first output, float32."""
        ...

    def run_for(self, outputs: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        """As run, for outputs by name."""
        ...


class Batched:
    """A session for any batch size: one that was built for a fixed size gets parts of it, the last padded."""

    def __init__(self, session: Session, batched_inputs: tuple[str, ...]) -> None:
        """batched_inputs: those that have the batch as their first dimension."""
        self.session = session
        self.batched_inputs = batched_inputs

    def __call__(self, **inputs: Array) -> Array:
        fixed = self.session.batch_size
        n = len(inputs[self.batched_inputs[0]])
        if fixed is None or fixed == n:
            return self.session.run(inputs)
        outputs = []
        for start in range(0, n, fixed):
            rows = [min(i, n - 1) for i in range(start, start + fixed)]
            part = {name: a[rows] if name in self.batched_inputs else a for name, a in inputs.items()}
            outputs.append(self.session.run(part)[: n - start])
        return np.concatenate(outputs)


def open_session(
    folder: Path,
    kind: str,
    options: SessionOptions,
    precision: str = "fp32",
    builder: str | None = None,
    kept: CompiledNetworks | None = None,
) -> Session:
    """Load the network in a component's folder.

    Args:
        folder: of the component.
        kind: the package's format: onnx, openvino, trt or executorch.
        options: checked for this format.
        precision: the component's, in which OpenVINO computes unless the options say otherwise; graphs of ONNX and
            TensorRT carry their own.
        builder: of TensorRT's engines, tensorrt or tensorrt_rtx; each reads only its own.
        kept: what OpenVINO has compiled before.

    Raises:
        RcdeployError: the network cannot be loaded, or what executes it is not installed.
    """
    backend = options.backend or BACKENDS.get(kind, (None,))[0]
    if backend == "onnxruntime":
        from .onnx_session import OnnxSession

        return OnnxSession(folder / "model.onnx", options.device, options.threads, options.memory_gb)
    if backend == "openvino":
        from .openvino_session import HINTS, OpenVinoSession, computed_in

        network = "model.onnx" if kind == "onnx" else "openvino_model.xml"
        hint = HINTS[options.precision or computed_in(precision, options.device)]
        return OpenVinoSession(folder, options.device, options.threads, hint, network, kept)
    if backend == "tensorrt":
        from .trt_session import TrtSession

        return TrtSession(folder, builder)
    if backend == "executorch":
        from .executorch_session import ExecutorchSession

        return ExecutorchSession(folder, options.device, options.threads)
    raise RcdeployError(f"this runtime does not know the format {kind!r}", fix="Upgrade rcdeploy-runtime.")
