"""ExecuTorch behind the session interface, on the workstation that exported: a phone runs the same program in its app.

ExecuTorch's Python interface takes torch's tensors, so this file alone of the runtime imports torch, and only for a
package of this format.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RcdeployError
from .files import read_json
from .noise_schedule import Array

PROGRAM = "model.pte"
SIGNATURE = "signature.json"
"""names, types and shapes of inputs and outputs in the order of the program, which has positions only"""
TYPES = {"float": np.float32, "int64": np.int64}


class ExecutorchSession:
    """A program for fixed shapes. Calls from several threads wait for each other: a method has one set of buffers."""

    def __init__(self, folder: Path, device: str = "auto", threads: int | None = None) -> None:
        """Args:
            folder: has model.pte and signature.json.
            device: auto or cpu.
            threads: of this process; None leaves ExecuTorch's own number.

        Raises:
            RcdeployError: ExecuTorch is not installed, or cannot load the program.
        """
        if device not in ("auto", "cpu"):
            raise RcdeployError(f"device is {device!r}; ExecuTorch runs here on the cpu")
        try:
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        except ImportError:
            raise RcdeployError(
                "this package is for ExecuTorch, which is not installed: apps on Android and iOS open it "
                "(examples/embed/android.md)",
                fix='To open it here: pip install "rcdeploy[executorch]". Any other format runs without torch.',
            ) from None
        self.device = "cpu"
        self._folder = folder
        self._lock = threading.Lock()
        try:
            described = read_json(folder / SIGNATURE)
            self._inputs = {name: (TYPES[i["type"]], tuple(i["shape"])) for name, i in described["inputs"].items()}
            self._outputs = list(described["outputs"])
            self.batch_size: int | None = next(iter(self._inputs.values()))[1][0]
            if threads is not None:
                portable_lib._unsafe_reset_threadpool(threads)
            self._program: Any = Runtime.get().load_program(folder / PROGRAM)
            self._method: Any = self._program.load_method("forward")
        except (RuntimeError, KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
            raise RcdeployError(
                f"ExecuTorch cannot load {folder}: {error}",
                fix="Export it anew with the version of ExecuTorch that runs it; its manifest says which made it.",
            ) from error

    def run(self, inputs: dict[str, Array]) -> Array:
        return self.run_for(self._outputs[:1], inputs)[0]

    def run_for(self, outputs: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        import torch

        try:
            feed = [
                torch.from_numpy(np.array(inputs[name], dtype).reshape(shape))
                for name, (dtype, shape) in self._inputs.items()
            ]
            with self._lock:
                results = dict(zip(self._outputs, self._method.execute(feed), strict=True))
            return [results[name].numpy().astype(np.float32, copy=False) for name in outputs]
        except (RuntimeError, KeyError, ValueError) as error:
            raise RcdeployError(
                f"ExecuTorch cannot run {self._folder}: {error}",
                fix="A program takes one shape: the package's own size.",
            ) from error
