"""From noise to latents with DDIM and classifier-free guidance: how the cache is filled and pictures are made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy_runtime.noise_schedule import noise_generator

from .diffusion_model import Condition, LatentDiffusionModel, predict
from .random_streams import CACHE, generator


def starting_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...], stream: int = CACHE) -> Tensor:
    """Noise [n, c, h, w] of the pictures with these indices: each a function of (seed, index) alone."""
    return torch.from_numpy(
        np.stack([generator(seed, stream, index).standard_normal(shape, np.float32) for index in indices])
    )


@torch.no_grad()
def sample_latents(
    unet: torch.nn.Module,
    schedule: DDIMScheduler,
    noise: Tensor,
    condition: Condition,
    null: Condition,
    *,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
) -> Tensor:
    """DDIM (eta 0) from x_T = noise [n, c, h, w] to scaled latents x_0 [n, c, h, w], fp32.

    condition: n rows; null: 1 row. guidance_scale 1 or below takes the conditional branch alone.
    """
    schedule = DDIMScheduler.from_config(schedule.config)
    schedule.set_timesteps(num_inference_steps)
    dtype, device = condition.prompt_embeds.dtype, condition.prompt_embeds.device
    latents = noise.to(device) * schedule.init_noise_sigma
    guided = guidance_scale > 1
    both = Condition.cat([null.take([0] * len(condition)), condition]) if guided else condition
    for t in schedule.timesteps:
        inputs = torch.cat([latents, latents]) if guided else latents
        output = predict(unet, inputs.to(dtype), t.to(device).expand(len(inputs)), both).float()
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance_scale * (conditional - unconditional)
        latents = schedule.step(output, t, latents).prev_sample
    return latents


def pictures(
    teacher: LatentDiffusionModel,
    prompts: Sequence[str],
    *,
    unet: torch.nn.Module | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    stream: int = CACHE,
    resolution: int | None = None,
    batch_size: int = 16,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
) -> Tensor:
    """Pictures [n, 3, H, W] in [0, 1] of n prompts by the teacher, or by `unet` with the teacher's other parts.

    Picture i starts from the noise of (seed, indices[i]), so two UNets can be compared picture by picture.
    """
    unet = teacher.unet if unet is None else unet
    indices = range(len(prompts)) if indices is None else indices
    null, shape, done = teacher.encode_prompts([""]), teacher.latent_shape(resolution), []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        latents = sample_latents(
            unet,
            teacher.schedule,
            starting_noise(seed, indices[rows], shape, stream),
            teacher.encode_prompts(prompts[rows]),
            null,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        done.append(teacher.decode(latents, batch_size).cpu())
    return torch.cat(done)


def pictures_of_seeds(
    teacher: LatentDiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    *,
    unet: torch.nn.Module | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    decode_at_once: int = 1,
) -> Tensor:
    """Pictures [n, 3, height, width] in [0, 1] that the runtime would draw with these seeds by DDIM, for comparing.

    size: (height, width) in pixels. unet: another one in place of the teacher's.
    """
    shape = (int(teacher.unet_config["in_channels"]), *(edge // teacher.pixels_per_latent for edge in size))
    latents = sample_latents(
        teacher.unet if unet is None else unet,
        teacher.schedule,
        torch.from_numpy(np.stack([noise_generator(seed).standard_normal(shape, np.float32) for seed in seeds])),
        teacher.encode_prompts(prompts),
        teacher.encode_prompts([""]),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    return teacher.decode(latents, decode_at_once).cpu()
