"""One training step: draw the samples, ask the teacher, compare the student. No loop, no files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..conditioning import NULL, PAIRED, UNPAIRED, RandomConditioning
from ..diffusion_model import Condition, LatentDiffusionModel, predict, training_target
from ..latent_cache import LatentCache
from ..prompts.pool import PromptPool
from ..recipe import Loss
from .features import FeatureTaps, Tap
from .losses import feature_loss, output_loss, task_loss


class StudentWithProjectors(nn.Module):
    """What is trained: the student's UNet and, where widths differ, a 1x1 projector per tap.

    In one module, so that wrappers see every parameter: gradients of projectors are synchronised, clipped and saved.
    """

    def __init__(self, unet: nn.Module, taps: list[Tap], *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.unet = unet
        self.projectors = nn.ModuleList(
            nn.Identity()
            if t.student_channels == t.teacher_channels
            else nn.Conv2d(t.student_channels, t.teacher_channels, 1)
            for t in taps
        )
        self._taps = FeatureTaps(unet, [t.student for t in taps])
        if gradient_checkpointing:
            # reentrant checkpointing cuts the gradient of taps inside a checkpointed block
            unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))  # type: ignore[operator]

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor, added: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """-> output [n, c, h, w], projected features, each [n, teacher channels, h', w']."""
        with self._taps.watching() as features:
            output = predict(self.unet, noisy_latents, timesteps, Condition(prompt_embeds, added))
        return output, [project(f) for project, f in zip(self.projectors, features, strict=True)]


@dataclass(frozen=True)
class Batch:
    """n samples on the teacher's device: x_0, noise, x_t [n, c, h, w]; timesteps, texts [n]; their conditions."""

    x_0: Tensor
    noise: Tensor
    noisy_latents: Tensor
    timesteps: Tensor
    texts: Tensor
    condition: Condition


class Batches:
    """Makes the batch of any range of samples of any step. Null and paired conditions are computed once.

    text_cache_bytes: if the paired prompts' embeddings would take more, they are computed when they are needed.
    """

    def __init__(
        self,
        teacher: LatentDiffusionModel,
        cache: LatentCache,
        pool: PromptPool,
        conditioning: RandomConditioning,
        *,
        text_cache_bytes: float = 2e9,
    ) -> None:
        self.teacher, self.cache, self.pool, self.conditioning = teacher, cache, pool, conditioning
        self.null = teacher.encode_prompts([""])
        each = self.null.prompt_embeds.nbytes + sum(v.nbytes for v in self.null.added.values())
        self.paired: Condition | None = None
        if each * len(cache) <= text_cache_bytes:
            rows = range(len(cache))
            parts = [self._encode(list(rows[i : i + 256])).to("cpu") for i in range(0, len(rows), 256)]
            self.paired = Condition.cat(parts)

    def _encode(self, rows: list[int]) -> Condition:
        return self.teacher.encode_prompts(self.cache.prompts.take(rows))

    def make(self, step: int, samples: range) -> Batch:
        """Samples `samples` of step `step`: equation 3, then the forward process."""
        draws = [self.conditioning.draw(step, i, self.cache.shape) for i in samples]
        device, n = self.teacher.device, len(draws)
        x_0 = self.cache.latents([d.row for d in draws]).to(device)
        noise = torch.stack([torch.from_numpy(d.noise) for d in draws]).to(device)
        timesteps = torch.tensor([d.timestep for d in draws], device=device)
        texts = torch.tensor([d.text for d in draws])
        paired, unpaired = ([i for i in range(n) if draws[i].text == kind] for kind in (PAIRED, UNPAIRED))
        parts, order = (
            [self.null.take([0] * int((texts == NULL).sum()))],
            [i for i in range(n) if draws[i].text == NULL],
        )
        if paired:
            rows = [draws[i].row for i in paired]
            parts.append(self.paired.take(rows).to(device) if self.paired else self._encode(rows))
        if unpaired:
            parts.append(self.teacher.encode_prompts(self.pool.take([draws[i].prompt for i in unpaired])))
        condition = Condition.cat(parts).take(torch.tensor(order + paired + unpaired).argsort())
        noisy = self.teacher.schedule.add_noise(x_0, noise, timesteps)
        return Batch(x_0, noise, noisy, timesteps, texts.to(device), condition)


def losses(
    model: nn.Module, teacher: LatentDiffusionModel, teacher_taps: FeatureTaps, batch: Batch, weights: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and each loss by itself (detached, on the device): those with a weight."""
    dtype = teacher.dtype
    # no_grad, not inference_mode: what the teacher says is kept for the student's backward pass
    with torch.no_grad(), teacher_taps.watching() as wanted:
        said = predict(teacher.unet, batch.noisy_latents.to(dtype), batch.timesteps, batch.condition)
    condition = batch.condition.to(batch.noisy_latents.device, torch.float32)
    output, features = model(batch.noisy_latents, batch.timesteps, condition.prompt_embeds, condition.added)
    each = {"output": output_loss(said, output)}
    total = weights.output * each["output"]
    if weights.feature:
        each["feature"] = feature_loss(wanted, features)
        total = total + weights.feature * each["feature"]
    if weights.task:
        wanted_output = training_target(teacher.schedule, batch.x_0, batch.noise, batch.timesteps)
        each["task"] = task_loss(wanted_output, output, batch.texts != UNPAIRED)
        total = total + weights.task * each["task"]
    return total, {name: value.detach() for name, value in {"loss": total, **each}.items()}
