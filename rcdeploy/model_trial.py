"""A small forward pass of each network of a diffusers folder: configs may build what cannot compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rcdeploy_runtime.errors import RcdeployError

from .condition import added_shapes

TRIAL_TOKENS = 2
DEEPEST_SIDE = 2
"""of the smallest feature map: normalising a group of one value is an error of torch"""


@torch.no_grad()
def try_network(name: str, network: nn.Module) -> None:
    """Runs a UNet, a text encoder or a VAE once, at the smallest size that it takes: milliseconds at any width.

    Raises RcdeployError, with what the library said, when it cannot compute or gives another shape than it should.
    """
    network.eval()
    try:
        output, shape = TRIALS[name](network, network.config)
    except Exception as error:  # whatever an unusual config makes torch raise
        raise _unusable(name, f"{type(error).__name__}: {error}") from error
    if list(output.shape) != shape:
        raise _unusable(name, f"it gives an array of shape {list(output.shape)} instead of {shape}")


def _unusable(name: str, reason: str) -> RcdeployError:
    return RcdeployError(
        f"the {name} cannot compute: {reason[:500]}",
        fix=f"Compare {name}/config.json with that of the model it was made from, or save the model anew.",
    )


def _unet(unet: nn.Module, config: Any) -> tuple[Tensor, list[int]]:
    side = DEEPEST_SIDE * 2 ** (len(config.block_out_channels) - 1)
    shape = [1, config.in_channels, side, side]
    prompt_embeds = _zeros(unet, [1, TRIAL_TOKENS, config.cross_attention_dim])
    added = {name: _zeros(unet, size) for name, size in added_shapes(config, 1).items()} or None
    timestep = torch.zeros(1, dtype=torch.long)
    output = unet(_zeros(unet, shape), timestep, prompt_embeds, added_cond_kwargs=added, return_dict=False)[0]
    return output, shape


def _text_encoder(text_encoder: nn.Module, config: Any) -> tuple[Tensor, list[int]]:
    ids = torch.zeros(1, TRIAL_TOKENS, dtype=torch.long)
    return text_encoder(ids).last_hidden_state, [1, TRIAL_TOKENS, config.hidden_size]


def _vae(vae: Any, config: Any) -> tuple[Tensor, list[int]]:
    side = DEEPEST_SIDE * 2 ** (len(config.block_out_channels) - 1)
    latents = _zeros(vae, [1, config.latent_channels, DEEPEST_SIDE, DEEPEST_SIDE])
    return vae.decode(latents).sample, [1, 3, side, side]


def _zeros(network: nn.Module, shape: list[int]) -> Tensor:
    return torch.zeros(shape, dtype=next(network.parameters()).dtype)


TRIALS = {"unet": _unet, "text_encoder": _text_encoder, "text_encoder_2": _text_encoder, "vae": _vae}
