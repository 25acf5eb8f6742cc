"""OpenVINO behind the session interface: `pip install "rcdeploy-runtime[openvino]"`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .compiled_networks import CompiledNetworks
from .errors import RcdeployError
from .noise_schedule import Array

Shapes = tuple[tuple[int, ...], ...]
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of precisions"""


@lru_cache(maxsize=1)
def core() -> Any:
    """OpenVINO's Core: one for the process, kept to its end.

    Every Core gives the thread that makes it a stack for signal handlers, and sets back the one before when it goes.
    When several go in another order than they came, what is set has been freed, and the next signal, such as Ctrl-C,
    ends the process without a word (OpenVINO 2026.4). Raises ImportError without OpenVINO.
    """
    import openvino

    return openvino.Core()


def available_devices() -> list[str]:
    """Devices by name, the CPU first; none where OpenVINO is not installed."""
    try:
        names = core().available_devices
    except ImportError:
        return []
    return ["cpu", *(name for name in names if name != "CPU")]


def capabilities(device: str) -> list[str]:
    """What a device computes in, in OpenVINO's names: FP32, BF16 ..."""
    try:
        return list(core().get_property(_device_name(device), "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError as error:
        raise RcdeployError(f"OpenVINO cannot ask {device}: {error}") from error


def computed_in(precision: str, device: str) -> str:
    """What OpenVINO computes a network of this precision in, unless it is told otherwise: bf16 or fp32.

    A network in int8 has bf16 where the device has it: what it does beside int8 products, such as attention and norms,
    makes a step of SD-1.4's c-micro 1.13 times as long in fp32 (docs/measured/speed.md).
    """
    if precision == "int8":
        with suppress(RcdeployError):  # a device that is not there: opening a session says so
            return "bf16" if "BF16" in capabilities(device) else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def _device_name(device: str) -> str:
    return "CPU" if device in ("auto", "cpu") else device.upper()


class OpenVinoSession:
    """A network that is compiled at its first run, for the shapes that it then gets.

    With free shapes OpenVINO infers them anew in every step, and a small UNet takes nearly twice as long. All other
    shapes share a second compilation.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "f32",
        network: str = "openvino_model.xml",
        kept: CompiledNetworks | None = None,
    ) -> None:
        """Args:
            folder: has the network.
            device: auto, cpu, or one of OpenVINO's names.
            threads: of a CPU; None takes all.
            precision: of the computation, one of HINTS; OpenVINO's own default is bf16 where the processor has it.
            network: openvino_model.xml, beside its .bin, or model.onnx.
            kept: where its compiled forms are kept; None compiles in every process.

        Raises:
            RcdeployError: OpenVINO is not installed, or cannot load the network.
        """
        try:
            self._core = core()
        except ImportError:
            raise RcdeployError(
                "this package needs OpenVINO, which is not installed", fix='pip install "rcdeploy-runtime[openvino]"'
            ) from None
        self.device = _device_name(device)
        self._folder = folder
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None and self.device == "CPU":
            self._settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._core.get_property(self.device, "FULL_DEVICE_NAME")  # raises for an unknown device
            weights = [str(folder / "openvino_model.bin")] if network.endswith(".xml") else []
            self._model = self._core.read_model(str(folder / network), *weights)
            self._types = {i.any_name: np.dtype(i.element_type.to_dtype()) for i in self._model.inputs}
            first = self._model.inputs[0].partial_shape[0]
            self.batch_size = None if first.is_dynamic else first.get_length()
        except (RuntimeError, IndexError, TypeError) as error:
            raise self._cannot_load(error) from error
        self._kept = kept
        self._compiled: dict[Shapes | None, Any] = {}
        """by shapes: the first ones, and None for all others"""
        self._compile_lock = threading.Lock()
        self._thread = threading.local()  # an infer request serves one thread
        self._mapped: list[Any] = []
        """what compiled networks read their weights from: it goes after them, so it stands below"""

    def run(self, inputs: dict[str, Array]) -> Array:
        return self.run_for([self._model.outputs[0].any_name], inputs)[0]

    def run_for(self, outputs: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        try:
            feed = {name: np.asarray(inputs[name], dtype, order="C") for name, dtype in self._types.items()}
            if "timestep" in feed and self._model.input("timestep").partial_shape.rank.get_length():
                feed["timestep"] = feed["timestep"].reshape(-1)
            request = self._request(tuple(array.shape for array in feed.values()))
            request.infer(feed)
            return [np.array(request.get_tensor(name).data, np.float32) for name in outputs]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise RcdeployError(
                f"OpenVINO cannot run {self._folder}: {error}",
                fix="Out of memory: generate fewer or smaller images at once. Otherwise export the package anew.",
            ) from error

    def _request(self, shapes: Shapes) -> Any:
        """This thread's infer request, of the network compiled for `shapes` (by input) or for any shapes."""
        with self._compile_lock:
            key = shapes if not self._compiled or shapes in self._compiled else None
            if key and key not in self._compiled:
                try:
                    self._compiled[key] = self._compile(key)
                except RuntimeError:
                    # OpenVINO 2026.4 refuses some networks with int8 weights for fixed shapes and takes them for free
                    # ones: a level of 1x1 is one. What cannot be compiled at all fails below, with the reason.
                    key = None
            if key not in self._compiled:
                try:
                    self._compiled[key] = self._compile(key)
                except RuntimeError as error:
                    raise self._cannot_load(error) from error
        requests = self._thread.__dict__.setdefault("requests", {})
        if key not in requests:
            requests[key] = self._compiled[key].create_infer_request()
        return requests[key]

    def _compile(self, shapes: Shapes | None) -> Any:
        import openvino

        key = f"{openvino.__version__} {self.device} {shapes} {sorted(self._settings.items())}"
        if shapes and self._kept and (compiled := self._import(self._kept, key)):
            return compiled
        model = self._model.clone()
        if shapes:
            model.reshape(dict(zip(self._types, shapes, strict=True)))
        compiled = self._core.compile_model(model, self.device, self._settings)
        if shapes and self._kept:
            self._kept.keep(key, compiled, sum(file.stat().st_size for file in self._folder.iterdir()))
        return compiled

    def _import(self, kept: CompiledNetworks, key: str) -> Any:
        """What is kept under `key`, as OpenVINO reads it; None where there is nothing that it can read."""
        import openvino

        blob = kept.open(key)
        if blob is None:
            return None
        try:
            tensor = openvino.Tensor(blob, shared_memory=True)
            compiled = self._core.import_model(tensor, self.device, self._settings)
        except (RuntimeError, ValueError):
            kept.remove(key)
            return None
        self._mapped += [blob, tensor]
        return compiled

    def _cannot_load(self, error: Exception) -> RcdeployError:
        return RcdeployError(f"OpenVINO cannot load {self._folder}: {error}")
