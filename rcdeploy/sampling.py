"""DDIM sampling with classifier-free guidance, for the latent cache and for images."""

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
    """x_T [n, c, h, w] of the samples with these indices: each is a function of (seed, stream, index) alone."""
    return torch.from_numpy(
        np.stack([generator(seed, stream, index).standard_normal(shape, np.float32) for index in indices])
    )


def runtime_noise(model: LatentDiffusionModel, seeds: Sequence[int], image_size: tuple[int, int]) -> Tensor:
    """x_T [n, c, h, w] as rcdeploy_runtime draws it for these seeds, to compare images with a package's.

    image_size: (height, width) in pixels.
    """
    height, width = (pixels // model.pixels_per_latent for pixels in image_size)
    shape = (int(model.unet_config["in_channels"]), height, width)
    return torch.from_numpy(np.stack([noise_generator(seed).standard_normal(shape, np.float32) for seed in seeds]))


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

    Args:
        condition: n rows. null: 1 row.
        guidance_scale: 1 or below computes the conditional branch alone.
    """
    schedule = DDIMScheduler.from_config(schedule.config)
    schedule.set_timesteps(num_inference_steps)
    dtype = condition.prompt_embeds.dtype
    device = condition.prompt_embeds.device
    latents = noise.to(device) * schedule.init_noise_sigma
    guided = guidance_scale > 1
    conditions = Condition.cat([null.take([0] * len(condition)), condition]) if guided else condition
    for t in schedule.timesteps:
        latent_input = torch.cat([latents, latents]) if guided else latents
        noise_pred = predict(unet, latent_input.to(dtype), t.to(device).expand(len(latent_input)), conditions).float()
        if guided:
            noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
            noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
        latents = schedule.step(noise_pred, t, latents).prev_sample
    return latents


def sample_images(
    model: LatentDiffusionModel,
    prompts: Sequence[str],
    noise: Tensor,
    *,
    unet: torch.nn.Module | None = None,
    schedule: DDIMScheduler | None = None,
    batch_size: int = 16,
    decode_batch_size: int | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
) -> Tensor:
    """Images [n, 3, H, W] in [0, 1] of n prompts, from start noise [n, c, h, w].

    Args:
        unet, schedule: in place of the model's own, so that two UNets can be compared image by image.
        batch_size: images sampled at once. decode_batch_size: images decoded at once, by default as many.
    """
    null = model.encode_prompts([""])
    images = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        latents = sample_latents(
            model.unet if unet is None else unet,
            schedule or model.schedule,
            noise[rows],
            model.encode_prompts(prompts[rows]),
            null,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        images.append(model.decode(latents, decode_batch_size or batch_size).cpu())
    return torch.cat(images)
