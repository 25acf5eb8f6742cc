"""The tiny decoder's network: diffusers' AutoencoderTiny (TAESD), for the latents of a teacher's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderTiny

from rcdeploy_runtime.errors import RcdeployError

from ..recipe_stages import Decoder

TAESD_BLOCKS = 3
"""residual blocks of a stage; the last stage, at full resolution, has one"""


def tiny_config(vae_config: Mapping[str, Any], section: Decoder) -> dict[str, Any]:
    """The config of the AutoencoderTiny that takes the place of a VAE, from the VAE's config.json.

    It takes scaled latents, so its own scaling_factor is 1; it enlarges as often as the VAE does. The encoder mirrors
    the decoder. Raises RcdeployError for a number of stages that is not the VAE's, and for a VAE of another kind.
    """
    kind = vae_config.get("_class_name")
    if kind != "AutoencoderKL":
        raise RcdeployError(
            f"the teacher's VAE is a {kind}: a tiny decoder is trained from an AutoencoderKL",
            fix="Leave [decoder] out, or take a teacher with its own VAE.",
        )
    stages = len(vae_config["block_out_channels"])
    blocks = section.blocks or [TAESD_BLOCKS] * (stages - 1) + [1]
    if len(blocks) != stages:
        raise RcdeployError(
            f"decoder.blocks has {len(blocks)} numbers, and the teacher's VAE has {stages} stages",
            fix=f"Give {stages} numbers, or leave decoder.blocks out.",
        )
    channels = [section.channels] * stages
    return {
        "in_channels": int(vae_config.get("out_channels", 3)),
        "out_channels": int(vae_config.get("out_channels", 3)),
        "latent_channels": int(vae_config["latent_channels"]),
        "decoder_block_out_channels": channels,
        "num_decoder_blocks": blocks,
        "encoder_block_out_channels": channels,
        "num_encoder_blocks": blocks[::-1],
        "scaling_factor": 1.0,
    }


def build_tiny(config: Mapping[str, Any], seed: int) -> AutoencoderTiny:
    """The network with random first weights, which are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderTiny.from_config(dict(config))
