"""An ONNX file to OpenVINO's IR, its weights compressed on request, readable by openvino-genai."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.openvino_session import core


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """Yields nncf without its remarks and bars, which would go to stdout, where --json writes."""
    import nncf

    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield nncf
    finally:
        logger.setLevel(level)


def _quantised(nncf: Any, model: Any, calibration: Sequence[dict[str, Array]], on_sample: Callable[[int], None]) -> Any:
    """In int8: weights and arithmetic where there are calibration samples, else weights alone."""
    if not calibration:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)

    def network_inputs(numbered: tuple[int, dict[str, Array]]) -> dict[str, Array]:
        number, sample = numbered
        on_sample(min(number, len(calibration)))
        return {**sample, "timestep": np.asarray(sample["timestep"]).reshape(1)}

    return nncf.quantize(
        model,
        nncf.Dataset(list(enumerate(calibration, 1)), network_inputs),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
    )


def to_openvino(
    file: Path,
    folder: Path,
    precision: str,
    calibration: Sequence[dict[str, Array]],
    on_sample: Callable[[int], None],
) -> None:
    """Writes folder/openvino_model.{xml,bin} from an ONNX file of opset 20.

    Args:
        file: the fp32 graph; what is changed in it is written beside it.
        folder: of the component.
        precision: fp16 and bf16 store weights in half precision; int8-weights stores them in int8 and computes in
            fp32; int8 computes in int8 too, calibrated.
        calibration: inputs of the network, for int8.
        on_sample: called with the number of calibration samples used.
    """
    import openvino

    converted = core().read_model(_with_timestep_as_vector(file))
    if precision.startswith("int8"):
        with _quiet_nncf() as nncf:
            converted = _quantised(nncf, converted, calibration if precision == "int8" else (), on_sample)
    _save(openvino, converted, folder / "openvino_model.xml", fp16=precision in ("fp16", "bf16"))


def tokenizer_to_openvino(tokenizer: Any, folder: Path) -> None:
    """The tokenizer as a graph, which openvino-genai reads; our runtime reads tokenizer.json."""
    import openvino
    from openvino_tokenizers import convert_tokenizer

    _save(openvino, convert_tokenizer(tokenizer), folder / "openvino_tokenizer.xml", fp16=False)


def _save(openvino: Any, model: Any, file: Path, *, fp16: bool) -> None:
    """Raises OSError when the files cannot be written: OpenVINO itself raises RuntimeError, or writes them short."""
    try:
        openvino.save_model(model, file, compress_to_fp16=fp16)
    except RuntimeError as error:
        raise OSError(f"OpenVINO cannot write {file.name}: {error}") from error


def _with_timestep_as_vector(file: Path) -> Path:
    """The graph; one with a timestep in a file beside it, where that is an input of shape [1], as openvino-genai passes
    it (ONNX has a scalar, for Optimum). Weights in a file of their own stay there, and are not read.
    """
    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    timestep = next((i for i in graph.input if i.name == "timestep"), None)
    if timestep is None:
        return file
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name == "timestep":
                node.input[k] = "timestep_scalar"
    squeeze = onnx.helper.make_node("Squeeze", ["timestep"], ["timestep_scalar"], name="squeeze_timestep")
    graph.node.insert(0, squeeze)
    timestep.CopyFrom(onnx.helper.make_tensor_value_info("timestep", onnx.TensorProto.INT64, [1]))
    changed = file.with_name("timestep_as_vector.onnx")
    onnx.save(model, changed)
    return changed
