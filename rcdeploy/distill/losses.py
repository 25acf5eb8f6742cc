"""The losses: equations 1 and 2 of the paper, and the denoising task loss of the BK-SDM baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def output_loss(teacher_output: Tensor, student_output: Tensor) -> Tensor:
    """Equation 1: mean squared error between the outputs [n, c, h, w] of the two UNets. Scalar."""
    return F.mse_loss(student_output.float(), teacher_output.float())


def feature_loss(teacher_features: list[Tensor], student_features: list[Tensor]) -> Tensor:
    """Equation 2: mean squared errors summed over the taps; the student's features are already projected. Scalar."""
    errors = [F.mse_loss(s.float(), t.float()) for t, s in zip(teacher_features, student_features, strict=True)]
    return torch.stack(errors).sum()


def task_loss(target: Tensor, student_output: Tensor, is_paired: Tensor) -> Tensor:
    """Denoising loss of the samples whose prompt belongs to their latent (or is null). Scalar.

    Others count as 0 in the mean over all n samples, so that a batch in several parts has the loss of the whole.

    Args:
        target, student_output: [n, c, h, w].
        is_paired: [n] booleans.
    """
    errors = (student_output.float() - target.float()).square().mean((1, 2, 3))
    return (errors * is_paired).mean()
