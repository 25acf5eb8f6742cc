"""The VAE of a diffusers folder: an AutoencoderKL, or an AutoencoderTiny (TAESD's layout), which samples nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

TINY_LOG_VARIANCE = -30.0
"""of the latents of an AutoencoderTiny's encoder, which have no spread"""


def vae_class(config: Mapping[str, Any]) -> Any:
    """diffusers' class for a vae/config.json."""
    return AutoencoderTiny if config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL


def vae_from_config(config: Mapping[str, Any]) -> Any:
    """With random weights, on the default device. Raises what diffusers raises for a config that builds no network."""
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    return vae_class(config).from_config(arguments)


class VaeDecoder(nn.Module):
    """The decoding half: latents [n, c, h, w] -> images [n, 3, H, W] in [-1, 1].

    The latents are those that diffusers' pipelines decode, sampled ones divided by the VAE's scaling_factor. scale:
    multiplies them first; a tiny decoder in the place of another VAE's takes its scaled latents so.
    """

    def __init__(self, vae: Any, scale: float = 1.0) -> None:
        super().__init__()
        self.post_quant_conv = getattr(vae, "post_quant_conv", None) or nn.Identity()
        self.decoder = vae.decoder
        self.latent_channels = int(vae.config.latent_channels)
        self.scale = scale

    def forward(self, latents: Tensor) -> Tensor:
        if self.scale != 1:
            latents = latents * self.scale
        images: Tensor = self.decoder(self.post_quant_conv(latents))
        return images


class VaeEncoder(nn.Module):
    """The encoding half: images [n, 3, H, W] in [-1, 1] -> mean and log-variance [n, 2c, h, w] of unscaled latents."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = getattr(vae, "quant_conv", None) or nn.Identity()
        self.is_tiny = isinstance(vae, AutoencoderTiny)

    def forward(self, images: Tensor) -> Tensor:
        moments: Tensor = self.quant_conv(self.encoder(images))
        if self.is_tiny:
            moments = torch.cat([moments, torch.full_like(moments, TINY_LOG_VARIANCE)], 1)
        return moments
