"""The losses: equations 1 and 2 of the paper, the task loss of the BK-SDM baseline, the frequency loss of SLIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SLIM_EXPONENT = -1.0
"""alpha of SLIM's frequency loss"""
SPECTRUM_FLOOR = 1e-3
"""smallest |F(x_0)| that its weights distinguish; latents have a standard deviation of about 1"""


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


def frequency_loss(
    teacher_maps: list[Tensor], student_maps: list[Tensor], x_0: Tensor, exponent: float = SLIM_EXPONENT
) -> Tensor:
    """SLIM's L_freq: sum_i w_i |F(X_T^(i)) - F(X_S^(i))|^2 with w_i = |F(x_0^(i))|^exponent, F the 2-D DFT. Scalar.

    arXiv 2211.17106, section 4 (spectrum-aware distillation); the paper's section I. A mean, as equations 1 and 2 are
    here, of an orthonormal DFT: with exponent 0 it is their sum (Parseval). x_0^(i), the clean latents at the size of
    map i, has other channels than the map: |F| is averaged over them. Below SPECTRUM_FLOOR it counts as that.

    Args:
        teacher_maps, student_maps: features or outputs, pairs [n, c_i, h_i, w_i], the student's projected.
        x_0: [n, c, h, w].
        exponent: SLIM's alpha; below 0 it weighs up what x_0 has little of, high frequencies.
    """
    losses = []
    for teacher_map, student_map in zip(teacher_maps, student_maps, strict=True):
        x = F.interpolate(x_0.float(), teacher_map.shape[-2:], mode="area")
        magnitudes = torch.fft.fft2(x, norm="ortho").abs().mean(1, keepdim=True)
        weights = magnitudes.clamp(min=SPECTRUM_FLOOR) ** exponent
        # F is linear: the difference of two spectra is that of the difference
        spectrum = torch.fft.fft2(student_map.float() - teacher_map.float(), norm="ortho")
        losses.append((weights * torch.view_as_real(spectrum).square().sum(-1)).mean())
    return torch.stack(losses).sum()
