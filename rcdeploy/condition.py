"""A UNet's condition and its call: prompt embeddings, SDXL's added conditioning, the training target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.guidance import TIMESTEP_COND, guidance_embedding

from .guidance import GuidanceScales

TIME_IDS = 6
"""original size, crop, target size, two numbers each"""


@dataclass(frozen=True)
class Condition:
    """The conditioning input of a UNet: prompt embeddings, and added conditioning where a model has it.

    prompt_embeds: [n, tokens, width]. added: further inputs by diffusers' names, each [n, ...]: SDXL's text_embeds (the
    pooled embedding) and time_ids; timestep_cond, the embedding of a guidance scale. SD-1.x and 2.x have none.
    """

    prompt_embeds: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        added = {name: to_device(tensor, device, dtype) for name, tensor in self.added.items()}
        return Condition(to_device(self.prompt_embeds, device, dtype), added)

    def take(self, rows: Sequence[int] | Tensor) -> Condition:
        index = to_device(torch.as_tensor(rows, dtype=torch.long), self.prompt_embeds.device)
        return Condition(self.prompt_embeds[index], {k: v[index] for k, v in self.added.items()})

    def with_guidance(self, scales: GuidanceScales | None, unet: torch.nn.Module) -> Condition:
        """With the embedding of the guidance scales if the UNet takes it (None: of 1, no guidance); else as it is."""
        config: Any = unet.config
        width = config.get("time_cond_proj_dim")
        if not width:
            return self
        rows = np.broadcast_to(1.0 if scales is None else scales, (len(self),))
        embedding = torch.from_numpy(guidance_embedding(rows, int(width))).to(self.prompt_embeds)
        return Condition(self.prompt_embeds, {**self.added, TIMESTEP_COND: embedding})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        return Condition(
            torch.cat([p.prompt_embeds for p in parts]),
            {k: torch.cat([p.added[k] for p in parts]) for k in parts[0].added},
        )


def to_device(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on `device`, and in `dtype`; a GPU is sent it from pinned memory, and the processor does not wait."""
    if tensor.is_cpu and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True).to(dtype)
    return tensor.to(device, dtype)


def predict(unet: torch.nn.Module, noisy_latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The UNet's raw output (noise or velocity, as its schedule's prediction_type says), shaped like noisy_latents."""
    added = dict(condition.added)
    guidance = added.pop(TIMESTEP_COND, None)
    output: Tensor = unet(
        noisy_latents,
        timesteps,
        condition.prompt_embeds,
        timestep_cond=guidance,
        added_cond_kwargs=added or None,
        return_dict=False,
    )[0]
    return output


def training_target(schedule: DDIMScheduler, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Training target for the scheduler's prediction_type: noise or velocity, shaped like x_0 (task loss)."""
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = schedule.get_velocity(x_0, noise, timesteps)
        return velocity
    raise RcdeployError(f"prediction_type {kind!r} is neither epsilon nor v_prediction")


def added_shapes(unet_config: Mapping[str, Any], rows: int) -> dict[str, list[int]]:
    """Shapes of the further inputs of a UNet (Condition.added); {} where it has none.

    Raises RcdeployError for a config whose sizes do not fit each other.
    """
    embedding = unet_config.get("time_cond_proj_dim")
    guidance = {TIMESTEP_COND: [rows, int(embedding)]} if embedding else {}
    if unet_config.get("addition_embed_type") is None:
        return guidance
    sizes = TIME_IDS * int(unet_config["addition_time_embed_dim"])
    width = int(unet_config["projection_class_embeddings_input_dim"]) - sizes
    if width < 1:
        raise RcdeployError(
            f"unet/config.json: projection_class_embeddings_input_dim has no room for pooled text beside {sizes} for "
            "sizes",
            fix="Copy the model again.",
        )
    return {"text_embeds": [rows, width], "time_ids": [rows, TIME_IDS], **guidance}
