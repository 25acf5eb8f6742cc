"""Parity: an exported network against the torch module that it came from, on random inputs of several shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.sessions import Session

from .components import Component

Shape = tuple[int, int, int]
"""batch size, latent height, latent width"""
MAX_RELATIVE_ERROR = {
    "fp32": 1e-3,
    "fp16": 3e-2,
    "bf16": 1e-1,
    "int8": 3e-1,
    "int8-matmul": 1e-1,
    "int8-weights": 1e-1,
}
"""largest |difference| / |torch's output| of a component, both as 2-norms, by precision. Measured: fp32 1e-6, fp16
1e-3, OpenVINO's bf16 1e-2, weights in int8 2e-2, everything in int8 1e-1"""


@dataclass(frozen=True)
class Parity:
    """The largest differences over all shapes that were compared; relative_error in 2-norms."""

    component: str
    max_abs_error: float
    relative_error: float
    shapes: tuple[Shape, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def shapes_to_compare(component: str, native: tuple[int, int], multiple: int, static: Shape | None) -> list[Shape]:
    """The native latent size, a wide one, and a batch of three at the smallest size.

    The UNet is compared at the native size with a batch of two as well, as guidance needs it. Two images through a VAE
    would take gigabytes and show nothing more.
    """
    if static:
        return [static]
    h, w = native
    guided = [(2, h, w)] if component == "unet" else []
    return [(1, h, w), *guided, (2, multiple, 2 * multiple), (3, multiple, multiple)]


@torch.no_grad()
def compare(
    component: Component,
    session: Session,
    shapes: Sequence[Shape],
    precision: str,
    on_shape: Callable[[int], None] = lambda _completed: None,
) -> Parity:
    """Compares the session with the component's module; on_shape is called after each shape.

    Raises RcdeployError when an output is further from torch's than the precision explains.
    """
    max_abs_error = 0.0
    max_relative_error = 0.0
    for seed, shape in enumerate(shapes):
        torch.manual_seed(seed)
        inputs = component.example_inputs(*shape)
        expected = component.module(*inputs)
        named = dict(zip(component.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True))
        feed = {name: x.numpy() for name, x in zip(component.inputs, inputs, strict=True)}
        outputs = session.run_for(component.compared_outputs, feed)
        for name, output in zip(component.compared_outputs, outputs, strict=True):
            abs_error, relative_error = _errors(output, named[name].float().numpy())
            max_abs_error = max(max_abs_error, abs_error)
            max_relative_error = max(max_relative_error, relative_error)
        on_shape(seed + 1)
    if not max_relative_error <= MAX_RELATIVE_ERROR[precision]:
        raise RcdeployError(
            f"{component.name}: the exported network differs from torch by a relative error of "
            f"{max_relative_error:.3g}; {precision} allows {MAX_RELATIVE_ERROR[precision]:g}",
            fix="No package was written. Try --precision fp32 or another --opset. If that fails too, please report it: "
            "fp32 exports should match.",
        )
    return Parity(component.name, max_abs_error, max_relative_error, tuple(shapes))


def _errors(output: Array, expected: Array) -> tuple[float, float]:
    """(largest absolute difference, relative difference in 2-norms); infinite for an output that is not finite."""
    if not np.isfinite(output).all():
        return float("inf"), float("inf")
    return float(np.abs(output - expected).max()), float(np.linalg.norm(output - expected) / np.linalg.norm(expected))
