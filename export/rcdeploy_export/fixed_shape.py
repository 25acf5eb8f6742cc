"""What the formats of phones share: a network traced at one shape, and the names of its inputs beside it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.executorch_session import SIGNATURE
from rcdeploy_runtime.files import write_json

from .components import Component
from .parity import Shape

TYPES = {torch.float32: "float", torch.float16: "float16", torch.int64: "int64", torch.int32: "int32"}
"""names of types in a manifest, as ONNX has them"""


def with_plain_attention(module: nn.Module) -> nn.Module:
    """A copy that computes attention as matrix products and a softmax, as mobile backends execute it.

    torch's fused attention is decomposed with a guard against rows that are masked altogether. No network here has
    such rows, and the guard cuts the graph into small pieces that fall back to slow kernels.
    """
    plain = copy.deepcopy(module).eval()
    for part in plain.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor())
        elif isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
    return plain


def trace(name: str, module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """The module as a graph for the shapes of `example`. Raises RcdeployError, with the component's name."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, example)
    except RuntimeError as error:
        raise RcdeployError(f"{name}: torch.export cannot trace it: {error}") from error


def signature(component: Component, shape: Shape, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Names, types and shapes of inputs and outputs, in their order: a program knows them by position only."""
    with torch.no_grad():
        outputs = component.module(*component.example_inputs(*shape))
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    return {"inputs": _described(component.inputs, inputs), "outputs": _described(component.outputs, tensors)}


def write_signature(folder: Path, contents: dict[str, Any]) -> None:
    write_json(folder / SIGNATURE, contents)


def _described(names: Any, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    return {
        name: {"type": TYPES[tensor.dtype], "shape": list(tensor.shape)}
        for name, tensor in zip(names, tensors, strict=True)
    }
