"""Training batches: equation 3 picks row, timestep and prompt of each sample, then the forward process adds noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..condition import Condition, to_device, training_target
from ..conditioning import NULL, PAIRED, UNPAIRED, RandomConditioning
from ..diffusion_model import LatentDiffusionModel
from ..latent_cache import LatentCache
from ..prompts.pool import PromptPool

PROMPTS_PER_ENCODING = 256


@dataclass(frozen=True)
class Batch:
    """n samples on the teacher's device.

    noisy_latents: [n, c, h, w], x_t. timesteps: [n]. prompt_kinds: [n], NULL, PAIRED or UNPAIRED. condition: n rows, in
    the teacher's precision. null: one row, the null condition. target: [n, c, h, w], of the task loss, or
    None. x_0: [n, c, h, w], clean latents, of the frequency loss.
    """

    noisy_latents: Tensor
    timesteps: Tensor
    prompt_kinds: Tensor
    condition: Condition
    null: Condition
    target: Tensor | None = None
    x_0: Tensor | None = None


class BatchMaker:
    """Makes the batch of any range of samples of any step. Null and paired conditions are computed once.

    On a GPU nothing here waits for it: while it computes a step, the processor makes the next one's batch.

    Args:
        text_cache_bytes: paired embeddings are computed per batch if all of them would need more memory than this.
        task_target: also compute the target of the task loss.
    """

    def __init__(
        self,
        teacher: LatentDiffusionModel,
        cache: LatentCache,
        pool: PromptPool,
        conditioning: RandomConditioning,
        *,
        text_cache_bytes: float = 2e9,
        task_target: bool = False,
    ) -> None:
        self.teacher = teacher
        self.cache = cache
        self.pool = pool
        self.conditioning = conditioning
        self.task_target = task_target
        self.null = teacher.null_condition(cache.shape[1:])
        self.paired: Condition | None = None
        bytes_per_prompt = self.null.prompt_embeds.nbytes + sum(v.nbytes for v in self.null.added.values())
        if bytes_per_prompt * len(cache) <= text_cache_bytes:
            rows = list(range(len(cache)))
            chunks = [rows[i : i + PROMPTS_PER_ENCODING] for i in range(0, len(rows), PROMPTS_PER_ENCODING)]
            self.paired = Condition.cat([self._encode_paired(chunk).to("cpu") for chunk in chunks])
            if not conditioning.ever_replaces:  # no text is encoded any more
                teacher.release("text_encoder", "text_encoder_2")

    def make(self, step: int, samples: range) -> Batch:
        """The batch of samples `samples` (indices within the global batch) of step `step`."""
        draws = [self.conditioning.draw(step, i, self.cache.shape) for i in samples]
        device = self.teacher.device
        x_0 = to_device(self.cache.latents([d.row for d in draws]), device)
        noise = to_device(torch.stack([torch.from_numpy(d.noise) for d in draws]), device)
        timesteps = to_device(torch.tensor([d.timestep for d in draws]), device)
        schedule = self.teacher.schedule
        return Batch(
            noisy_latents=schedule.add_noise(x_0, noise, timesteps),
            timesteps=timesteps,
            prompt_kinds=to_device(torch.tensor([d.prompt_kind for d in draws]), device),
            condition=self._condition(
                kinds=[d.prompt_kind for d in draws], rows=[d.row for d in draws], prompts=[d.prompt for d in draws]
            ),
            null=self.null,
            target=training_target(schedule, x_0, noise, timesteps) if self.task_target else None,
            x_0=x_0,
        )

    def _condition(self, kinds: list[int], rows: list[int], prompts: list[int]) -> Condition:
        """The condition of each sample: grouped by kind for the text encoder, then brought back into order."""
        null, paired, unpaired = ([i for i, k in enumerate(kinds) if k == kind] for kind in (NULL, PAIRED, UNPAIRED))
        parts = [self.null.take([0] * len(null))]
        if paired:
            paired_rows = [rows[i] for i in paired]
            known = self.paired.take(paired_rows).to(self.teacher.device) if self.paired else None
            parts.append(known if known is not None else self._encode_paired(paired_rows))
        if unpaired:
            texts = self.pool.take([prompts[i] for i in unpaired])
            parts.append(self.teacher.encode_prompts(texts, self.cache.shape[1:]))
        return Condition.cat(parts).take(torch.tensor(null + paired + unpaired).argsort())

    def _encode_paired(self, rows: list[int]) -> Condition:
        return self.teacher.encode_prompts(self.cache.prompts.take(rows), self.cache.shape[1:])
