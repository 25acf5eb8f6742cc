"""OpenVINO behind the session interface: `pip install "rcdeploy-runtime[openvino]"`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array

Shapes = tuple[tuple[int, ...], ...]


class OpenVinoSession:
    """Compiled when it first runs, for the shapes that it meets then: where shapes may change, OpenVINO works them out
    anew in every step, and a small UNet takes nearly twice as long. Other shapes later share one network more.
    """

    def __init__(self, folder: Path, device: str = "auto", threads: int | None = None, precision: str = "f32") -> None:
        """precision: what is computed in, f32 or bf16. By itself OpenVINO takes bf16 where the processor has it."""
        try:
            import openvino
        except ImportError:
            raise RcdeployError(
                "this package is for OpenVINO, which is not installed", fix='pip install "rcdeploy-runtime[openvino]"'
            ) from None
        self.device = "CPU" if device in ("auto", "cpu") else device.upper()
        self._folder = folder
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads and self.device == "CPU":
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._core = openvino.Core()
        try:
            self._core.get_property(self.device, "FULL_DEVICE_NAME")  # is it there?
            self._model = self._core.read_model(str(folder / "openvino_model.xml"))
        except RuntimeError as error:
            raise self._cannot_load(error) from error
        self._types = {i.any_name: np.dtype(i.element_type.to_dtype()) for i in self._model.inputs}
        shape = self._model.inputs[0].partial_shape
        self.rows = None if shape[0].is_dynamic else shape[0].get_length()
        self._compiled: dict[Shapes | None, Any] = {}
        """for the first shapes, and under None for all others"""
        self._compiling = threading.Lock()
        self._requests = threading.local()  # an infer request serves one thread

    def run(self, inputs: dict[str, Array]) -> Array:
        cast = {name: np.asarray(inputs[name], kind, order="C") for name, kind in self._types.items()}
        if cast.get("timestep") is not None:
            cast["timestep"] = cast["timestep"].reshape(-1)
        request = self._request(tuple(array.shape for array in cast.values()))
        request.infer(cast)
        output: Array = request.get_output_tensor(0).data
        return np.array(output, np.float32)

    def _request(self, shapes: Shapes) -> Any:
        """This thread's, of the network compiled for `shapes` (in the order of its inputs), or of the one for any."""
        with self._compiling:
            key = shapes if not self._compiled or shapes in self._compiled else None
            if key and key not in self._compiled:
                try:
                    self._compiled[key] = self._compile(key)
                except RuntimeError:
                    # OpenVINO 2026.4 refuses some networks of int8 weights for fixed shapes and takes them for any:
                    # a level of 1x1 is one. What cannot be loaded at all fails below, and says why.
                    key = None
            if key not in self._compiled:
                try:
                    self._compiled[key] = self._compile(key)
                except RuntimeError as error:
                    raise self._cannot_load(error) from error
        mine = self._requests.__dict__.setdefault("mine", {})
        if key not in mine:
            mine[key] = self._compiled[key].create_infer_request()
        return mine[key]

    def _compile(self, shapes: Shapes | None) -> Any:
        model = self._model.clone()
        if shapes:
            model.reshape(dict(zip(self._types, shapes, strict=True)))
        return self._core.compile_model(model, self.device, self._settings)

    def _cannot_load(self, error: RuntimeError) -> RcdeployError:
        return RcdeployError(f"OpenVINO cannot load {self._folder}: {error}")
