"""Losses of the tiny decoder: pixels, and features of the teacher VAE's own encoder in place of LPIPS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..recipe_stages import Decoder
from .critic import PatchCritic, adversarial_loss, critic_loss


def encoder_features(vae: Any, images: Tensor) -> list[Tensor]:
    """Images [n, 3, H, W] in [-1, 1] -> the outputs of the VAE encoder's stages, each [n, c, h, w], large to small."""
    hidden = vae.encoder.conv_in(images)
    features = []
    for block in vae.encoder.down_blocks:
        hidden = block(hidden)
        features.append(hidden)
    return features


def latents_of_features(vae: Any, last: Tensor) -> Tensor:
    """The last of encoder_features -> the mean of the VAE's posterior [n, c, h, w], not scaled."""
    encoder = vae.encoder
    moments = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(last))))
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    mean: Tensor = moments.chunk(2, dim=1)[0]
    return mean


def pixel_loss(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference."""
    return nn.functional.l1_loss(images, target)


def perceptual_loss(features: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Mean over stages of |f - g|^2 / |g|^2, as 2-norms over the batch: every stage weighs the same."""
    ratios = [(f - g).square().mean() / g.square().mean() for f, g in zip(features, target, strict=True)]
    return torch.stack(ratios).mean()


def decoder_loss(
    network: Any, teacher: Any, latents: Tensor, images: Tensor, section: Decoder, critic: PatchCritic | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses, and each by itself (detached).

    Args:
        network: the AutoencoderTiny that is trained.
        teacher: the model whose VAE is imitated.
        latents: scaled, [n, c, h, w].
        images: the VAE's decode of them, [n, 3, H, W] in [-1, 1].
        section: the weights. The encoder's and the critic's losses have the weight 1: they share nothing with the
            decoder's.
        critic: for the adversarial loss, if that has a weight; it is trained by the same sum.
    """
    decoded = network.decoder(latents)
    losses = {"pixel": pixel_loss(decoded, images)}
    with torch.no_grad():
        target_features = encoder_features(teacher.vae, images)
        target_latents = latents_of_features(teacher.vae, target_features[-1]) * teacher.scaling_factor
    total = section.pixel * losses["pixel"]
    if section.perceptual:
        losses["perceptual"] = perceptual_loss(encoder_features(teacher.vae, decoded), target_features)
        total = total + section.perceptual * losses["perceptual"]
    if critic is not None:
        losses["adversarial"] = adversarial_loss(critic, decoded)
        total = total + section.adversarial * losses["adversarial"]
    losses["encoder"] = nn.functional.mse_loss(network.encoder(images), target_latents)
    total = total + losses["encoder"]
    losses["loss"] = total  # the critic's is none of the network's, whose divergence it would hide
    if critic is not None:
        losses["critic"] = critic_loss(critic, decoded, images)
        total = total + losses["critic"]
    return total, {name: value.detach() for name, value in losses.items()}
