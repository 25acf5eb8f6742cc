"""TensorRT behind the session interface: `pip install "rcdeploy-runtime[tensorrt]"`. Not yet run on a device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array
from .trt_engines import ENGINE, load_builder


class TrtSession:
    """An engine, with one execution context, stream and set of buffers for each thread that calls."""

    def __init__(self, folder: Path) -> None:
        self.device, self.rows = "cuda", None  # type: tuple[str, int | None]
        self._trt = load_builder()
        try:
            from cuda.bindings import runtime as cudart
        except ImportError:
            raise RcdeployError("cuda-python is not installed", fix="pip install cuda-python") from None
        self._cuda = cudart
        # asked before TensorRT: without a GPU some of its libraries end the process
        error, count = cudart.cudaGetDeviceCount()
        if int(error) != 0 or count == 0:
            raise RcdeployError(
                "this package needs an NVIDIA GPU, and none is here", fix="Use the ONNX package instead."
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
        rows = self._engine.get_tensor_shape(first)[0]
        self.rows = None if rows == -1 else int(rows)
        self._mine = threading.local()

    def _checked(self, result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            raise RcdeployError(f"CUDA: {result[0].name}", fix="Out of memory: draw fewer or smaller pictures at once.")
        return result[1] if len(result) > 1 else None

    def _buffer(self, name: str, size: int) -> int:
        """A device buffer of at least `size` bytes for this tensor; kept from call to call."""
        held: dict[str, tuple[int, int]] = self._mine.buffers
        if name not in held or held[name][1] < size:
            if name in held:
                self._checked(self._cuda.cudaFree(held[name][0]))
            held[name] = (int(self._checked(self._cuda.cudaMalloc(size))), size)
        return held[name][0]

    def run(self, inputs: dict[str, Array]) -> Array:
        if not hasattr(self._mine, "context"):
            self._mine.context, self._mine.buffers = self._engine.create_execution_context(), {}
            self._mine.stream = self._checked(self._cuda.cudaStreamCreate())
        context, stream, kind = self._mine.context, self._mine.stream, self._cuda.cudaMemcpyKind
        cast = {name: np.asarray(a, self._types[name], order="C") for name, a in inputs.items()}
        for name, array in cast.items():
            if not context.set_input_shape(name, array.shape):
                raise RcdeployError(
                    f"the engine does not take {name} of shape {array.shape}",
                    fix="It was built for other sizes or fewer pictures: build it again with --max-batch.",
                )
            there = self._buffer(name, max(1, array.nbytes))
            self._checked(
                self._cuda.cudaMemcpyAsync(there, array.ctypes.data, array.nbytes, kind.cudaMemcpyHostToDevice, stream)
            )
            context.set_tensor_address(name, there)
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            context.set_tensor_address(name, self._buffer(name, int(np.prod(shape)) * self._types[name].itemsize))
        if not context.execute_async_v3(int(stream)):
            raise RcdeployError("TensorRT could not run the network; its own lines above say why")
        wanted = self._outputs[0]
        output = np.empty(tuple(context.get_tensor_shape(wanted)), self._types[wanted])
        self._checked(
            self._cuda.cudaMemcpyAsync(
                output.ctypes.data, self._mine.buffers[wanted][0], output.nbytes, kind.cudaMemcpyDeviceToHost, stream
            )
        )
        self._checked(self._cuda.cudaStreamSynchronize(stream))
        return output.astype(np.float32)
