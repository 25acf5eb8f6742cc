"""Parity: a package's network against the torch module it came from, on random inputs at several shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.sessions import Session

from .components import Component

TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1, "int8": 3e-1, "mixed": 1e-1}
"""largest relative error that a component may have, by precision: |difference| / |torch's answer|, both as 2-norms.
Measured: fp32 1e-6, fp16 1e-3, OpenVINO's bf16 1e-2, weights in int8 2e-2, everything in int8 1e-1."""


@dataclass(frozen=True)
class Parity:
    """max_abs_error, relative_error (2-norms): the worst of all shapes. shapes: (rows, latent height, latent width)."""

    component: str
    max_abs_error: float
    relative_error: float
    shapes: tuple[tuple[int, int, int], ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def shapes_to_try(
    component: str, native: tuple[int, int], unit: int, static: tuple[int, int, int] | None
) -> list[tuple[int, int, int]]:
    """The native size, one that is wider than high, three rows at the smallest size.

    The UNet has its native size with two rows too, as guidance asks it; two full pictures through a VAE would take
    gigabytes to say nothing more.
    """
    if static:
        return [static]
    h, w = native
    return [(1, h, w), *([(2, h, w)] if component == "unet" else []), (2, unit, 2 * unit), (3, unit, unit)]


@torch.no_grad()
def compare(
    component: Component, session: Session, shapes: Sequence[tuple[int, int, int]], precision: str, seed: int = 0
) -> Parity:
    """Raises RcdeployError when the network's answers are further from torch's than this precision explains."""
    worst_abs = worst_relative = 0.0
    for index, shape in enumerate(shapes):
        torch.manual_seed(seed + index)
        inputs = component.example(*shape)
        expected = component.module(*inputs)
        expected = (expected[0] if isinstance(expected, tuple) else expected).float().numpy()
        got = session.run({name: x.numpy() for name, x in zip(component.inputs, inputs, strict=True)})
        difference = np.abs(got - expected)
        relative = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
        worst_abs = max(worst_abs, float(difference.max()) if np.isfinite(got).all() else float("inf"))
        worst_relative = max(worst_relative, relative if np.isfinite(relative) else float("inf"))
    if not worst_relative <= TOLERANCE[precision]:
        raise RcdeployError(
            f"the exported {component.name} does not answer as torch does: relative error {worst_relative:.3g}, "
            f"allowed for {precision} is {TOLERANCE[precision]:g}",
            fix="No package was written. Try --precision fp32 or another --opset, and tell us: this should not be.",
        )
    return Parity(component.name, worst_abs, worst_relative, tuple(shapes))
