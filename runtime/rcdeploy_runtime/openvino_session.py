"""OpenVINO behind the session interface: `pip install "rcdeploy-runtime[openvino]"`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array


class OpenVinoSession:
    def __init__(self, folder: Path, device: str = "auto", threads: int | None = None, precision: str = "f32") -> None:
        """precision: what is computed in, f32 or bf16. By itself OpenVINO takes bf16 where the processor has it."""
        try:
            import openvino
        except ImportError:
            raise RcdeployError(
                "this package is for OpenVINO, which is not installed", fix='pip install "rcdeploy-runtime[openvino]"'
            ) from None
        self.device = "CPU" if device in ("auto", "cpu") else device.upper()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads and self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = openvino.Core().compile_model(str(folder / "openvino_model.xml"), self.device, settings)
        except RuntimeError as error:
            raise RcdeployError(f"OpenVINO cannot load {folder}: {error}") from error
        self._types = {i.any_name: np.dtype(i.element_type.to_dtype()) for i in self._model.inputs}
        shape = self._model.inputs[0].partial_shape
        self.rows = None if shape[0].is_dynamic else shape[0].get_length()
        self._requests = threading.local()  # an infer request serves one thread

    def run(self, inputs: dict[str, Array]) -> Array:
        if not hasattr(self._requests, "mine"):
            self._requests.mine = self._model.create_infer_request()
        cast = {name: np.asarray(a, self._types[name], order="C") for name, a in inputs.items()}
        if cast.get("timestep") is not None:
            cast["timestep"] = cast["timestep"].reshape(-1)
        self._requests.mine.infer(cast)
        output: Array = self._requests.mine.get_output_tensor(0).data
        return np.array(output, np.float32)
