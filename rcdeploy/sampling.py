"""Sampling with classifier-free guidance, for the latent cache (DDIM) and for images (any sampler of the runtime)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.noise import noise_generator
from rcdeploy_runtime.noise_schedule import Array, NoiseSchedule
from rcdeploy_runtime.samplers import make_sampler

from .condition import Condition, predict, to_device
from .diffusion_model import LatentDiffusionModel
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


def check_signal(schedule: DDIMScheduler, timestep: int) -> None:
    """Raises RcdeployError if x_0 cannot be computed at `timestep`: epsilon is predicted, and no signal is left there.

    A velocity has an x_0 everywhere; the schedule's other timesteps have a signal.
    """
    if schedule.config.prediction_type == "epsilon" and schedule.alphas_cumprod[timestep] == 0:
        raise RcdeployError(
            f"the model predicts epsilon, and its noise schedule has no signal at timestep {timestep} (zero SNR)",
            fix="Models with rescale_betas_zero_snr predict v: compare scheduler_config.json with the original.",
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
    sampler: str = "ddim",
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """From noise [n, c, h, w] to scaled latents x_0 [n, c, h, w], fp32.

    Args:
        condition: n rows. null: 1 row.
        guidance_scale: 1 or below computes the conditional branch alone, as a UNet that takes the scale always does.
        sampler: one of rcdeploy_runtime's. DDIM (eta 0) is diffusers' class, on the model's device.
        seeds: of the images, for the noise that ancestral samplers and LCM add; 0, 1, 2 ... by default.

    Raises:
        RcdeployError: for a sampler that is unknown, that cannot take so many steps, or that would divide by zero SNR.
    """
    device = condition.prompt_embeds.device
    config: Any = unet.config
    guided = guidance_scale > 1 and not config.get("time_cond_proj_dim")
    condition = condition.with_guidance(guidance_scale, unet)
    conditions = Condition.cat([null.take([0] * len(condition)), condition]) if guided else condition

    def noise_pred(x: Tensor, t: Tensor) -> Tensor:
        x = x.to(device, condition.prompt_embeds.dtype)
        x = torch.cat([x, x]) if guided else x
        output = predict(unet, x, to_device(t, device).expand(len(x)), conditions).float()
        if not guided:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    if sampler == "ddim":
        ddim = DDIMScheduler.from_config(schedule.config)
        ddim.set_timesteps(num_inference_steps)
        check_signal(ddim, int(ddim.timesteps[0]))
        latents = noise.to(device) * ddim.init_noise_sigma
        for t in ddim.timesteps:
            latents = ddim.step(noise_pred(latents, t), t, latents).prev_sample
        return latents

    further_noise = _FurtherNoise(range(len(noise)) if seeds is None else seeds, tuple(noise.shape[1:]))
    config = {key: value for key, value in schedule.config.items() if not key.startswith("_")}
    made = make_sampler(sampler, NoiseSchedule.from_config(config), num_inference_steps, further_noise)
    x = noise.cpu().numpy() * np.float32(made.init_noise_sigma)
    for i, timestep in enumerate(made.timesteps):
        model_input = torch.from_numpy(made.scale_model_input(x, i).astype(np.float32, copy=False))
        output = noise_pred(model_input, torch.tensor(round(float(timestep))))  # whole, as the runtime's graphs take it
        x = made.step(output.cpu().numpy(), i, x).astype(np.float32, copy=False)
    return torch.from_numpy(x).to(device)


class _FurtherNoise:
    """Noise [n, c, h, w] as rcdeploy_runtime draws it for these seeds after x_T."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self._seeds = seeds
        self._shape = shape
        self._generators: list[np.random.Generator] = []

    def __call__(self) -> Array:
        if not self._generators:
            self._generators = [noise_generator(seed) for seed in self._seeds]
            self._draw()  # x_T
        return self._draw()

    def _draw(self) -> Array:
        return np.stack([g.standard_normal(self._shape, np.float32) for g in self._generators])


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
    sampler: str = "ddim",
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Images [n, 3, H, W] in [0, 1] of n prompts, from start noise [n, c, h, w].

    Args:
        unet, schedule: in place of the model's own, so that two UNets can be compared image by image.
        batch_size: images sampled at once. decode_batch_size: images decoded at once, by default as many.
        sampler, seeds: as in sample_latents. With runtime_noise's seeds the images are those of a package.
    """
    null = model.null_condition(noise.shape[2:])
    seeds = range(len(prompts)) if seeds is None else seeds
    images = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        latents = sample_latents(
            model.unet if unet is None else unet,
            schedule or model.schedule,
            noise[rows],
            model.encode_prompts(prompts[rows], noise.shape[2:]),
            null,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            seeds=seeds[rows],
        )
        images.append(model.decode(latents, decode_batch_size or batch_size).cpu())
    return torch.cat(images)
