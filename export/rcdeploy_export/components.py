"""The networks of a package as modules with named inputs and outputs, example inputs and dynamic dimensions.

Input and output names are those that diffusers' ONNX pipelines and Optimum read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_config import size_multiple
from rcdeploy.vae import VaeEncoder
from rcdeploy_runtime.errors import RcdeployError


@dataclass(frozen=True)
class Component:
    """A network to export.

    Args:
        name: of its folder in the package.
        module: takes the inputs by position.
        inputs: name -> makes an example for (batch size, latent height, latent width).
        dynamic: name -> {dimension: its range}, for dimensions that stay open.
        outputs: their names; the first is the one that is compared with torch.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Callable[[int, int, int], Tensor]]
    dynamic: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]

    def example_inputs(
        self, batch_size: int, height: int, width: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        """Random inputs for latents of height x width; floating-point ones in `dtype`."""
        tensors = (make(batch_size, height, width) for make in self.inputs.values())
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in tensors)


class _TextEncoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(input_ids=input_ids)
        return output.last_hidden_state, output.pooler_output


class _Unet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        output: Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return output


def components(model: LatentDiffusionModel, encoder: bool = True) -> list[Component]:
    """The networks of a text-to-image model, on the CPU, in evaluation mode. encoder: with that of the VAE.

    Raises RcdeployError for a text encoder that a package cannot carry.
    """
    channels = int(model.unet_config["in_channels"])
    pixels = model.pixels_per_latent
    multiple = size_multiple(model.unet_config)
    text_config = model.text_encoder.config
    if getattr(text_config, "use_attention_mask", False):
        raise RcdeployError("text_encoder: it needs an attention mask, which packages do not support")
    context = int(model.tokenizer.model_max_length)
    embed_width = int(model.unet_config["cross_attention_dim"])
    batch = Dim("batch", min=1, max=64)
    latent_height = Dim("latent_height", min=1, max=512)
    latent_width = Dim("latent_width", min=1, max=512)
    unet_latents = {0: batch, 2: multiple * Dim("height", min=1, max=64), 3: multiple * Dim("width", min=1, max=64)}
    decoder_latents = {0: batch, 2: latent_height, 3: latent_width}
    encoder_images = {0: batch, 2: pixels * latent_height, 3: pixels * latent_width}

    def token_ids(batch_size: int, _height: int, _width: int) -> Tensor:
        ids = torch.randint(0, text_config.vocab_size, (batch_size, context))
        ids[:, -1] = model.tokenizer.eos_token_id
        return ids

    networks = [
        Component(
            "text_encoder",
            _TextEncoder(model.text_encoder),
            {"input_ids": token_ids},
            {"input_ids": {0: batch}},
            ("last_hidden_state", "pooler_output"),
        ),
        Component(
            "unet",
            _Unet(model.unet),
            {
                "sample": lambda n, h, w: torch.randn(n, channels, h, w),
                "timestep": lambda _n, h, w: torch.tensor((h * 131 + w * 17) % 1000),
                "encoder_hidden_states": lambda n, _h, _w: torch.randn(n, context, embed_width),
            },
            {"sample": unet_latents, "timestep": {}, "encoder_hidden_states": {0: batch}},
            ("out_sample",),
        ),
        Component(
            "vae_decoder",
            model.vae_decoder,
            {"latent_sample": lambda n, h, w: torch.randn(n, channels, h, w)},
            {"latent_sample": decoder_latents},
            ("sample",),
        ),
    ]
    if encoder:
        networks.append(
            Component(
                "vae_encoder",
                VaeEncoder(model.vae),
                {"sample": lambda n, h, w: torch.rand(n, 3, h * pixels, w * pixels) * 2 - 1},
                {"sample": encoder_images},
                ("latent_parameters",),
            )
        )
    return networks
