"""One training step: the student with its projectors, the distillation loss, the optimizer step. No loop, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..condition import Condition, predict, to_device
from ..conditioning import UNPAIRED
from ..guidance import GuidanceScales
from ..recipe import Loss, Train
from .batches import Batch
from .features import FeatureRecorder, FeatureTap
from .losses import feature_loss, frequency_loss, output_loss, task_loss

ClipGradNorm = Callable[[Iterable[nn.Parameter], float], Tensor]


class StudentWithProjectors(nn.Module):
    """The module that is trained: the student's UNet and, where channels differ, a 1x1 projector per tap.

    In one module, so that wrappers see every parameter: gradients of projectors are synchronised, clipped and saved.
    """

    def __init__(self, unet: nn.Module, taps: list[FeatureTap], *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.unet = unet
        self.projectors = nn.ModuleList(
            nn.Conv2d(tap.student_channels, tap.teacher_channels, 1) if tap.needs_projector else nn.Identity()
            for tap in taps
        )
        self._features = FeatureRecorder(unet, [tap.student for tap in taps])
        if gradient_checkpointing:
            # reentrant checkpointing cuts the gradient of taps inside a checkpointed block
            unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))  # type: ignore[operator]

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor, added: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """-> output [n, c, h, w], projected features, each [n, teacher channels, h', w']."""
        with self._features.recording() as features:
            output = predict(self.unet, noisy_latents, timesteps, Condition(prompt_embeds, added))
        return output, [project(f) for project, f in zip(self.projectors, features, strict=True)]


def guided_prediction(
    unet: nn.Module,
    noisy_latents: Tensor,
    timesteps: Tensor,
    condition: Condition,
    null: Condition,
    guidance_scale: GuidanceScales | None,
) -> Tensor:
    """The output under classifier-free guidance: null + scale (conditional - null); None: the conditional output.

    null: one row. guidance_scale: of all rows, or of each. Rows whose condition is the null condition keep its output,
    whatever the scale.
    """
    conditional = predict(unet, noisy_latents, timesteps, condition)
    if guidance_scale is None:
        return conditional
    unconditional = predict(unet, noisy_latents, timesteps, null.take([0] * len(condition)))
    if isinstance(guidance_scale, np.ndarray):
        scales = to_device(torch.from_numpy(guidance_scale), conditional.device).view(-1, 1, 1, 1)
        return unconditional + scales * (conditional - unconditional)
    return unconditional + guidance_scale * (conditional - unconditional)


def distillation_loss(
    student: nn.Module,
    teacher_unet: nn.Module,
    teacher_features: FeatureRecorder,
    batch: Batch,
    weights: Loss,
    guidance_scale: GuidanceScales | None = None,
    student_unet: nn.Module | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of equations 1 and 2, task and frequency loss, and each by itself (detached, on the device).

    Args:
        student: a StudentWithProjectors, or what wraps it (DDP, autocast); its inputs are fp32.
        teacher_unet: frozen, in the precision of the batch's condition.
        teacher_features: recorder on `teacher_unet`, with the taps of the student's projectors.
        batch: with a target if the task loss has a weight, with x_0 if the frequency loss has one.
        weights: losses with weight 0 are not computed, output loss apart.
        guidance_scale: of the teacher's output; features are those of its conditional pass.
        student_unet: of `student`, if it takes the guidance scale as an input.
    """
    condition = batch.condition
    # no_grad, not inference_mode: the teacher's output is needed in the student's backward pass
    with torch.no_grad():
        noisy_latents = batch.noisy_latents.to(condition.prompt_embeds.dtype)
        with teacher_features.recording(first_call=True) as target_features:
            teacher_output = guided_prediction(
                teacher_unet, noisy_latents, batch.timesteps, condition, batch.null, guidance_scale
            )
    condition = condition.to(batch.noisy_latents.device, torch.float32)
    if student_unet is not None:
        condition = condition.with_guidance(guidance_scale, student_unet)
    output, features = student(batch.noisy_latents, batch.timesteps, condition.prompt_embeds, condition.added)
    losses = {"output": output_loss(teacher_output, output)}
    total = weights.output * losses["output"]
    if weights.feature:
        losses["feature"] = feature_loss(target_features, features)
        total = total + weights.feature * losses["feature"]
    if weights.task:
        assert batch.target is not None
        losses["task"] = task_loss(batch.target, output, batch.prompt_kinds != UNPAIRED)
        total = total + weights.task * losses["task"]
    if weights.frequency:
        assert batch.x_0 is not None
        # "features or outputs of the same scale": the outputs are one pair more
        pairs = [teacher_output, *target_features], [output, *features]
        losses["frequency"] = frequency_loss(*pairs, batch.x_0)
        total = total + weights.frequency * losses["frequency"]
    return total, {name: value.detach() for name, value in {"loss": total, **losses}.items()}


def make_optimizer(student: nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW over student and projectors (supplement B)."""
    return torch.optim.AdamW(
        student.parameters(),
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_eps,
        weight_decay=train.weight_decay,
        fused=True,  # one pass over the weights instead of a dozen
    )


class WithoutAveraging(EMAModel):
    """In place of the EMA where its decay is 0: the weights themselves, so that no memory holds them twice."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__([])
        self.shadow_params = [parameter.detach() for parameter in parameters]

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        self.optimization_step += 1

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        pass


def make_ema(student: StudentWithProjectors, train: Train) -> EMAModel:
    """EMA of the student's UNet, warmed up as min(decay, (1 + step) / (10 + step)). Projectors are not averaged."""
    if not train.ema_decay:
        return WithoutAveraging(student.unet.parameters())
    return EMAModel(student.unet.parameters(), decay=train.ema_decay, foreach=True)


def optimizer_step(
    student: StudentWithProjectors,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    max_grad_norm: float,
    clip_grad_norm: ClipGradNorm = nn.utils.clip_grad_norm_,
) -> Tensor:
    """Clips the gradients, updates the weights and their EMA. Returns the gradient norm before clipping.

    Args:
        clip_grad_norm: accelerate's, where a scaler has to undo its scaling first.
    """
    grad_norm = clip_grad_norm(student.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    ema.step(student.unet.parameters())
    return grad_norm
