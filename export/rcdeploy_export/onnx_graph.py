"""A component to an ONNX file: traced by torch.export, cleaned, its shapes open or fixed."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from rcdeploy_runtime.errors import RcdeployError

from .components import Component

PROTOBUF_LIMIT = 2**31 - 2**24
"""a model file cannot be larger; above this its weights lie beside it"""


def export_onnx(
    component: Component,
    file: Path,
    *,
    opset: int,
    dtype: torch.dtype = torch.float32,
    static: tuple[int, int, int] | None = None,
    trace_at: tuple[int, int] = (16, 16),
    external_data: bool = False,
) -> None:
    """Writes `file`, and `file`.data beside it where the weights need it or external_data asks for it.

    dtype: float16 exports the halved model (converting a finished graph loses three times as much). static: (rows,
    latent height, latent width), for accelerators that need fixed shapes. trace_at: latents to trace with otherwise.
    """
    rows, height, width = static or (2, *trace_at)
    module = component.module.eval()
    if dtype != torch.float32:
        module = copy.deepcopy(module).to(dtype)  # the original keeps its precision: others are compared with it
    try:
        example = component.example(rows, height, width, dtype)
        shapes = None if static else tuple(component.dynamic.values())
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's remarks on its own deprecations
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                module,
                example,
                input_names=list(component.inputs),
                output_names=list(component.outputs),
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise RcdeployError(f"the {component.name} cannot be exported to ONNX: {error}") from error
    assert program is not None  # it is, with dynamo
    model = clean(program.model_proto)
    save(model, file, external_data=external_data)


def clean(model: Any) -> Any:
    """Less what only the exporter wanted to know: where in the source each node came from."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.producer_name, model.doc_string = "rcdeploy", ""
    return model


def save(model: Any, file: Path, *, external_data: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if external_data or weight_bytes(model) > PROTOBUF_LIMIT:
        onnx.save(model, file, save_as_external_data=True, location=file.name + ".data", size_threshold=1024)
    else:
        onnx.save(model, file)
    onnx.checker.check_model(str(file))


def weight_bytes(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
