"""Costs that do not depend on the machine: parameters, weight bytes, multiply-accumulates of a call and an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..model_description import ModelDescription
from ..student.build import build_on_meta
from .macs import parameters, text_encoder_macs, text_encoder_on_meta, unet_macs, vae_decoder_macs, vae_decoder_on_meta


def component_costs(model: ModelDescription, image_size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Costs of one call of each network with a batch of one: a prompt, a latent, an image.

    Args:
        model: the model whose networks are counted.
        image_size: (height, width) in pixels.

    Returns:
        {component: {parameters, bytes, macs_thop, macs}}. macs_thop: as THOP counts; macs: every matrix product.
        bytes: None for a student, which has no files.

    Raises:
        RcdeployError: the model cannot make images of that size.
    """
    latent_size = model.latent_size(image_size)
    length = model.text_length
    unet = build_on_meta(model.configs["unet"])
    text_encoder = text_encoder_on_meta(model.configs)
    decoder = vae_decoder_on_meta(model.configs["vae"])
    counts = {
        "text_encoder": (text_encoder, text_encoder_macs(text_encoder, length)),
        "unet": (unet, unet_macs(unet, latent_size, length)),
        "vae_decoder": (decoder, vae_decoder_macs(decoder, latent_size)),
    }
    return {
        name: {
            "parameters": parameters(module),
            "bytes": model.weight_bytes[name] if model.weight_bytes else None,
            "macs_thop": macs.thop,
            "macs": macs.total,
        }
        for name, (module, macs) in counts.items()
    }


def image_macs(
    components: Mapping[str, Mapping[str, Any]],
    unet_calls: int,
    guidance_scale: float,
    takes_guidance_scale: bool = False,
) -> dict[str, int]:
    """{macs_thop, macs} of one image: so many UNet calls of each guidance branch, a prompt a branch, one decoding."""
    rows = branches(guidance_scale, takes_guidance_scale)
    calls = {"text_encoder": rows, "unet": rows * unet_calls, "vae_decoder": 1}
    return {key: sum(n * components[name][key] for name, n in calls.items()) for key in ("macs_thop", "macs")}


def branches(guidance_scale: float, takes_guidance_scale: bool = False) -> int:
    """Batch size of the UNet for one image: guidance adds the null condition, but where the UNet takes the scale."""
    return 2 if guidance_scale > 1 and not takes_guidance_scale else 1
