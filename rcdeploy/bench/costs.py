"""What a subject costs on any machine: parameters, bytes, and multiply-accumulates of a call and of a whole picture."""

from __future__ import annotations

from typing import Any

from ..model_description import ModelDescription
from ..student.build import build_on_meta
from .macs import parameters, text_encoder_macs, text_encoder_on_meta, unet_macs, vae_decoder_macs, vae_decoder_on_meta


def component_costs(model: ModelDescription, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """{component: {parameters, bytes, macs_thop, macs}} for one call on one row: prompt, latent, picture.

    size: of the picture, (height, width) in pixels. macs_thop: as THOP counts; macs: every matrix product. bytes: None
    for a student, which has no files. Raises RcdeployError when the subject cannot draw that size.
    """
    latents, length, configs = model.latent_size(size), model.text_length, model.configs
    unet = build_on_meta(configs["unet"])
    text_encoder, decoder = text_encoder_on_meta(configs["text_encoder"]), vae_decoder_on_meta(configs["vae"])
    counted = {
        "text_encoder": (text_encoder, text_encoder_macs(text_encoder, length)),
        "unet": (unet, unet_macs(unet, latents, length)),
        "vae_decoder": (decoder, vae_decoder_macs(decoder, latents)),
    }
    return {
        name: {
            "parameters": parameters(module),
            "bytes": model.weight_bytes[name] if model.weight_bytes else None,
            "macs_thop": macs.thop,
            "macs": macs.total,
        }
        for name, (module, macs) in counted.items()
    }


def image_macs(
    components: dict[str, dict[str, Any]], num_inference_steps: int, guidance_scale: float
) -> dict[str, int]:
    """{macs_thop, macs} of one picture: a UNet call a step and branch, a prompt a branch, one decoding."""
    rows = branches(guidance_scale)
    calls = {"text_encoder": rows, "unet": rows * num_inference_steps, "vae_decoder": 1}
    return {key: sum(n * components[name][key] for name, n in calls.items()) for key in ("macs_thop", "macs")}


def branches(guidance_scale: float) -> int:
    """Rows of the UNet for one picture: with guidance the null condition is asked too."""
    return 2 if guidance_scale > 1 else 1
