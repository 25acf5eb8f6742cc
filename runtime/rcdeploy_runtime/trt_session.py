"""TensorRT behind the session interface: `pip install "rcdeploy-runtime[tensorrt]"`. Not yet run on a device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array
from .trt_engines import ENGINE, load_builder


class TrtSession:
    """An engine, with one execution context, stream and set of buffers for each thread that calls."""

    def __init__(self, folder: Path, builder: str | None = None) -> None:
        """builder: tensorrt or tensorrt_rtx, which built the engine; None takes whichever is installed."""
        self.device = "cuda"
        self._trt = load_builder(rtx=None if builder is None else builder == "tensorrt_rtx")
        try:
            from cuda.bindings import runtime as cudart
        except ImportError:
            raise RcdeployError("cuda-bindings is not installed", fix="pip install cuda-bindings") from None
        self._cuda = cudart
        # before TensorRT: without a GPU some of its libraries end the process
        error, count = cudart.cudaGetDeviceCount()
        if int(error) != 0 or count == 0:
            raise RcdeployError(
                "this package needs an NVIDIA GPU, and this machine has none", fix="Use the ONNX package instead."
            )
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._engine = self._trt.Runtime(self._logger).deserialize_cuda_engine((folder / ENGINE).read_bytes())
        if self._engine is None:
            raise RcdeployError(
                f"{folder / ENGINE} was built for another GPU or another TensorRT",
                fix="Build it here from the ONNX package: python -m rcdeploy_runtime build-engine PACKAGE",
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        mode = self._trt.TensorIOMode.OUTPUT
        self._outputs = [n for n in names if self._engine.get_tensor_mode(n) == mode]
        self._types = {n: np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(n))) for n in names}
        first = next(n for n in names if n not in self._outputs)
        batch_size = self._engine.get_tensor_shape(first)[0]
        self.batch_size = None if batch_size == -1 else int(batch_size)
        self._thread = threading.local()

    def _checked(self, result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            raise RcdeployError(
                f"CUDA: {result[0].name}", fix="Out of memory: generate fewer or smaller images at once."
            )
        return result[1] if len(result) > 1 else None

    def _buffer(self, name: str, size: int) -> int:
        """A device buffer of at least `size` bytes for this tensor; kept from call to call."""
        buffers: dict[str, tuple[int, int]] = self._thread.buffers
        if name not in buffers or buffers[name][1] < size:
            if name in buffers:
                self._checked(self._cuda.cudaFree(buffers[name][0]))
            buffers[name] = (int(self._checked(self._cuda.cudaMalloc(size))), size)
        return buffers[name][0]

    def run(self, inputs: dict[str, Array]) -> Array:
        return self.run_for(self._outputs[:1], inputs)[0]

    def run_for(self, outputs: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        if not hasattr(self._thread, "context"):
            self._thread.context = self._engine.create_execution_context()
            self._thread.buffers = {}
            self._thread.stream = self._checked(self._cuda.cudaStreamCreate())
        context = self._thread.context
        stream = self._thread.stream
        kind = self._cuda.cudaMemcpyKind
        feed = {name: np.asarray(a, self._types[name], order="C") for name, a in inputs.items()}
        for name, array in feed.items():
            if not context.set_input_shape(name, array.shape):
                raise RcdeployError(
                    f"the engine does not take {name} of shape {array.shape}",
                    fix="It was built for other sizes or fewer images: build it again with --max-batch.",
                )
            buffer = self._buffer(name, max(1, array.nbytes))
            self._checked(
                self._cuda.cudaMemcpyAsync(buffer, array.ctypes.data, array.nbytes, kind.cudaMemcpyHostToDevice, stream)
            )
            context.set_tensor_address(name, buffer)
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            context.set_tensor_address(name, self._buffer(name, int(np.prod(shape)) * self._types[name].itemsize))
        if not context.execute_async_v3(int(stream)):
            raise RcdeployError("TensorRT could not run the network; its own messages above say why")
        arrays = [np.empty(tuple(context.get_tensor_shape(name)), self._types[name]) for name in outputs]
        for name, array in zip(outputs, arrays, strict=True):
            buffer = self._thread.buffers[name][0]
            self._checked(
                self._cuda.cudaMemcpyAsync(array.ctypes.data, buffer, array.nbytes, kind.cudaMemcpyDeviceToHost, stream)
            )
        self._checked(self._cuda.cudaStreamSynchronize(stream))
        return [array.astype(np.float32) for array in arrays]
