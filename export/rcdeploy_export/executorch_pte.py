"""A component to an ExecuTorch program, lowered to XNNPACK: the processors of phones, and this machine's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.executorch_session import PROGRAM
from rcdeploy_runtime.noise_schedule import Array

from .components import Component
from .fixed_shape import signature, trace, with_plain_attention, write_signature
from .parity import Shape


def export_pte(
    component: Component,
    folder: Path,
    *,
    shape: Shape,
    quantised: bool,
    calibration: Sequence[dict[str, Array]],
    on_sample: Callable[[int], None],
) -> None:
    """Writes folder/model.pte, and the names of its inputs and outputs beside it.

    Args:
        component: the network.
        folder: of the component, made where it is missing.
        shape: (batch size, latent height, latent width), the only one that the program takes.
        quantised: weights and arithmetic in int8, with calibrated ranges of activations where there is calibration;
            else weights of matrix products in int8, their activations scaled as it runs.
        calibration: inputs of the network, of batch size 1.
        on_sample: called with the number of calibration samples used.

    Raises RcdeployError when the network cannot be traced or lowered.
    """
    example = component.example_inputs(*shape)
    program = trace(component.name, with_plain_attention(component.module), example)
    with _quiet():
        try:
            if quantised:
                program = _quantised(component, program, example, calibration, on_sample)
            contents = _lowered(program)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise RcdeployError(f"{component.name}: ExecuTorch cannot lower it to XNNPACK: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROGRAM).write_bytes(contents)
    write_signature(folder, signature(component, shape, example))


def _lowered(program: ExportedProgram) -> bytes:
    """What XNNPACK does not take (group and layer norm, indexing) runs in ExecuTorch's portable kernels."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def _quantised(
    component: Component,
    program: ExportedProgram,
    example: tuple[Tensor, ...],
    calibration: Sequence[dict[str, Array]],
    on_sample: Callable[[int], None],
) -> ExportedProgram:
    """Symmetric int8 by XNNPACK's own quantizer, one scale a channel."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not calibration)
    observed = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for number, sample in enumerate(calibration, 1):
            observed(*_as_example(sample, component, example))
            on_sample(number)
        if not calibration:
            observed(*example)
    return trace(component.name, convert_pt2e(observed), example)


def _as_example(sample: dict[str, Array], component: Component, example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A calibration sample with as many rows, and of the size, that the program takes."""
    tensors = []
    for name, like in zip(component.inputs, example, strict=True):
        tensor = torch.from_numpy(np.asarray(sample[name]))
        tensors.append(tensor.expand(like.shape).contiguous() if like.ndim else tensor)
    return tuple(tensors)


@contextmanager
def _quiet() -> Iterator[Any]:
    """Without the remarks of lowering, one for each node that falls back."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
