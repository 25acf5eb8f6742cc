"""A component to a Core ML model package. coremltools converts on Linux too; only Apple's systems run the result."""

from __future__ import annotations

import logging
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from rcdeploy_runtime.errors import RcdeployError

from .components import Component
from .fixed_shape import signature, trace, write_signature
from .parity import Shape

MODEL = "model.mlpackage"
TARGET = "iOS17"
"""the oldest system that opens the package, beside macOS 14"""


class _Int32Inputs(nn.Module):
    """Core ML has neither inputs of int64 nor scalars: it gets int32, and a timestep of one element."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def export_mlpackage(component: Component, folder: Path, *, shape: Shape, half: bool) -> None:
    """Writes folder/model.mlpackage, checked structurally, and the names of its inputs and outputs beside it.

    Args:
        component: the network.
        folder: of the component, made where it is missing.
        shape: (batch size, latent height, latent width), the only one that the model takes.
        half: computes in fp16, which the Neural Engine needs.

    Raises RcdeployError when the network cannot be traced or converted, or the result is not what was asked for.
    """
    import coremltools

    example = tuple(_as_coreml(x) for x in component.example_inputs(*shape))
    program = trace(component.name, _Int32Inputs(component.module.eval()), example)
    described = signature(component, shape, example)
    file = folder / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = coremltools.convert(
                _without_aliases(program.run_decompositions({})),
                inputs=[_tensor_type(name, x) for name, x in zip(component.inputs, example, strict=True)],
                outputs=[coremltools.TensorType(name=name) for name in component.outputs],
                minimum_deployment_target=getattr(coremltools.target, TARGET),
                compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
        model.save(str(file))
    except (RuntimeError, ValueError, NotImplementedError, KeyError, TypeError) as error:
        shutil.rmtree(file, ignore_errors=True)
        raise RcdeployError(f"{component.name}: coremltools cannot convert it: {error}") from error
    finally:
        logger.setLevel(level)
    check_structure(component.name, file, described)
    write_signature(folder, described)


def with_coreml_names(component: Component) -> Component:
    """The component with outputs as Core ML names them: without dots, as in hidden_states.2 of SDXL's text encoders."""
    outputs, compared = (
        tuple(name.replace(".", "_") for name in names) for names in (component.outputs, component.compared)
    )
    return replace(component, outputs=outputs, compared=compared)


def check_structure(name: str, file: Path, described: dict[str, Any]) -> int:
    """The number of operations of a saved model, read back. Nothing is computed: that takes one of Apple's systems.

    Raises RcdeployError when inputs, outputs or their shapes are not those of the signature.
    """
    import coremltools

    spec = coremltools.models.MLModel(str(file), skip_model_load=True).get_spec()
    inputs = {i.name: list(i.type.multiArrayType.shape) for i in spec.description.input}
    expected = {key: value["shape"] for key, value in described["inputs"].items()}
    outputs = {o.name for o in spec.description.output}
    operations = sum(
        len(block.operations)
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
    )
    if inputs != expected or outputs != set(described["outputs"]) or not operations:
        raise RcdeployError(
            f"{name}: Core ML's model has the inputs {inputs} and the outputs {sorted(outputs)}; expected were "
            f"{expected} and {sorted(described['outputs'])}"
        )
    return operations


def _without_aliases(program: ExportedProgram) -> ExportedProgram:
    """Removes the nodes that only pass a tensor on, which coremltools does not know."""
    for node in list(program.graph.nodes):
        if node.target == torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    return program


def _as_coreml(tensor: Tensor) -> Tensor:
    tensor = tensor if tensor.ndim else tensor.reshape(1)
    return tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor


def _tensor_type(name: str, tensor: Tensor) -> Any:
    import coremltools

    dtype = np.int32 if tensor.dtype == torch.int32 else np.float32
    return coremltools.TensorType(name=name, shape=tuple(tensor.shape), dtype=dtype)
