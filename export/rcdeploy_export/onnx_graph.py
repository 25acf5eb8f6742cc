"""A component to an ONNX file: traced by torch.export, without traces of the exporter, shapes dynamic or static."""

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

MAX_PROTOBUF_BYTES = 2**31 - 2**24
"""a graph with more bytes of weights stores them in a file beside it"""


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

    Args:
        component: the network.
        file: of the graph.
        opset: of the graph.
        dtype: float16 exports the module in half precision: converting a finished graph loses three times as much.
        static: (batch size, latent height, latent width), for accelerators that need fixed shapes.
        trace_at: latents to trace with otherwise; at a size of 1 in any stage the exporter would make it static.
        external_data: stores weights outside the graph whatever their size.
    """
    batch_size, height, width = static or (2, *trace_at)
    module = component.module.eval()
    if dtype != torch.float32:
        module = copy.deepcopy(module).to(dtype)  # the original keeps its precision: others are compared with it
    try:
        example = component.example_inputs(batch_size, height, width, dtype)
        shapes = None if static else tuple(component.dynamic.values())
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
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
        raise RcdeployError(f"{component.name}: it cannot be exported to ONNX: {error}") from error
    assert program is not None  # with dynamo it never is
    save(remove_metadata(program.model_proto), file, external_data=external_data)


def remove_metadata(model: Any) -> Any:
    """Removes the exporter's notes, such as the line of source that each node came from."""
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
    model.producer_name = "rcdeploy"
    model.doc_string = ""
    return model


def save(model: Any, file: Path, *, external_data: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if external_data or weight_bytes(model) > MAX_PROTOBUF_BYTES:
        onnx.save(model, file, save_as_external_data=True, location=file.name + ".data", size_threshold=1024)
    else:
        onnx.save(model, file)
    onnx.checker.check_model(str(file))


def weight_bytes(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
