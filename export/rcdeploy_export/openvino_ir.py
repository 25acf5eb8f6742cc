"""An ONNX file to OpenVINO's IR, its weights compressed on request, readable by openvino-genai."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.noise_schedule import Array


def require(precision: str) -> Any:
    try:
        import openvino
        import openvino_tokenizers  # noqa: F401

        if precision in ("int8", "mixed"):
            import nncf  # noqa: F401
    except ImportError as error:
        raise RcdeployError(f"{error.name} is not installed", fix='pip install "rcdeploy[openvino]"') from None
    return openvino


@contextmanager
def _nncf() -> Iterator[Any]:
    """Yields nncf, whose remarks and bars would go to stdout, where --json has its own to say."""
    import nncf

    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield nncf
    finally:
        logger.setLevel(before)


def _compressed(nncf: Any, model: Any, calibration: Sequence[dict[str, Array]]) -> Any:
    """In int8: weights and arithmetic where there are rows to calibrate with, else weights alone."""
    if not calibration:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    rows = [{**row, "timestep": np.asarray(row["timestep"]).reshape(1)} for row in calibration]
    return nncf.quantize(
        model,
        nncf.Dataset(rows),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(rows),
        model_type=nncf.ModelType.TRANSFORMER,
    )


def to_openvino(file: Path, folder: Path, precision: str, calibration: Sequence[dict[str, Array]]) -> None:
    """Writes folder/openvino_model.{xml,bin} from an ONNX file of opset 20.

    fp16, bf16: weights stored in half. mixed: weights in int8, arithmetic as it was. int8: both, calibrated.
    """
    openvino = require(precision)
    model = onnx.load(file)
    if any(i.name == "timestep" for i in model.graph.input):
        _timestep_as_vector(model)
    patched = folder / "patched.onnx"
    big = file.with_name(file.name + ".data").exists()
    onnx.save(model, patched, save_as_external_data=big, location="patched.onnx.data")
    converted = openvino.Core().read_model(patched)
    if precision in ("int8", "mixed"):
        with _nncf() as nncf:
            converted = _compressed(nncf, converted, calibration if precision == "int8" else ())
    openvino.save_model(converted, folder / "openvino_model.xml", compress_to_fp16=precision in ("fp16", "bf16"))
    del converted
    patched.unlink()
    patched.with_name("patched.onnx.data").unlink(missing_ok=True)


def tokenizer_to_openvino(tokenizer: Any, folder: Path) -> None:
    """The tokenizer as a graph: what openvino-genai reads; our own runtime goes by tokenizer.json."""
    openvino = require("fp32")
    from openvino_tokenizers import convert_tokenizer

    openvino.save_model(convert_tokenizer(tokenizer), folder / "openvino_tokenizer.xml", compress_to_fp16=False)


def _timestep_as_vector(model: Any) -> None:
    """openvino-genai hands over a timestep of shape [1]; the ONNX graph takes a scalar, as Optimum does."""
    graph = model.graph
    given = next(i for i in graph.input if i.name == "timestep")
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name == "timestep":
                node.input[k] = "timestep_scalar"
    squeeze = onnx.helper.make_node("Squeeze", ["timestep"], ["timestep_scalar"], name="squeeze_timestep")
    graph.node.insert(0, squeeze)
    given.CopyFrom(onnx.helper.make_tensor_value_info("timestep", onnx.TensorProto.INT64, [1]))
