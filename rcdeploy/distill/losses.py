"""Equations 1 and 2, and the denoising loss of the BK-SDM baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def output_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Equation 1: mean squared difference of what the two UNets say [n, c, h, w]. Scalar."""
    return F.mse_loss(student.float(), teacher.float())


def feature_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Equation 2: the sum over taps of the mean squared difference; student features are already projected. Scalar."""
    return torch.stack([F.mse_loss(s.float(), t.float()) for t, s in zip(teacher, student, strict=True)]).sum()


def task_loss(target: Tensor, student: Tensor, true_pair: Tensor) -> Tensor:
    """Denoising loss of the samples whose text belongs to them (or is null); true_pair [n] booleans. Scalar.

    Others count as 0 in the mean over all n, so that a batch cut into parts has the same loss as the whole.
    """
    each = (student.float() - target.float()).square().mean((1, 2, 3))
    return (each * true_pair).mean()
