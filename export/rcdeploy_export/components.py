"""The four networks of a package as plain functions of named tensors: what is exported, and with which example inputs.

Names of inputs and outputs are those that diffusers' ONNX pipelines and Optimum read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy_runtime.errors import RcdeployError


@dataclass(frozen=True)
class Component:
    """A network to export.

    module: takes the inputs by position. inputs: name -> makes one for (rows, latent height, latent width).
    dynamic: name -> dimensions that stay open. outputs: their names; the first is the one that is compared.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Callable[[int, int, int], Tensor]]
    dynamic: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]

    def example(self, rows: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        made = (make(rows, height, width) for make in self.inputs.values())
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in made)


class _TextEncoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        said = self.model(input_ids=input_ids)
        return said.last_hidden_state, said.pooler_output


class _Unet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        said: Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return said


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv or nn.Identity(), vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return decoded


class _Encoder(nn.Module):
    """Mean and log-variance; whoever wants a random latent draws it outside the graph."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv or nn.Identity()

    def forward(self, sample: Tensor) -> Tensor:
        parameters: Tensor = self.quant_conv(self.encoder(sample))
        return parameters


def halvings(unet_config: dict[str, Any]) -> int:
    """How often the UNet halves its latents: their edges are multiples of 2 to that power."""
    return len(unet_config["block_out_channels"]) - 1


def components(teacher: LatentDiffusionModel) -> list[Component]:
    """Those of a text-to-image folder, on the CPU, in evaluation mode.

    Traced with two rows and at least 16 x 16 latents: at a size of 1 in any stage the exporter would fix it for good.
    """
    channels = int(teacher.unet_config["in_channels"])
    pixels, unit = teacher.pixels_per_latent, 2 ** halvings(teacher.unet_config)
    text = teacher.text_encoder.config
    if getattr(text, "use_attention_mask", False):
        raise RcdeployError("this model's text encoder wants an attention mask, which packages do not carry")
    context, width = int(teacher.tokenizer.model_max_length), int(teacher.unet_config["cross_attention_dim"])
    batch, high, wide = Dim("batch", min=1, max=64), Dim("height", min=1, max=64), Dim("width", min=1, max=64)
    latents = {0: batch, 2: unit * high, 3: unit * wide}
    free = {0: batch, 2: Dim("latent_height", min=1, max=512), 3: Dim("latent_width", min=1, max=512)}
    # an encoder's size is whole latents, so it is that many pixels
    pictures = {
        0: batch,
        2: pixels * Dim("latent_height", min=1, max=512),
        3: pixels * Dim("latent_width", min=1, max=512),
    }

    def tokens(rows: int, _height: int, _width: int) -> Tensor:
        ids = torch.randint(0, text.vocab_size, (rows, context))
        ids[:, -1] = teacher.tokenizer.eos_token_id
        return ids

    return [
        Component(
            "text_encoder",
            _TextEncoder(teacher.text_encoder),
            {"input_ids": tokens},
            {"input_ids": {0: batch}},
            ("last_hidden_state", "pooler_output"),
        ),
        Component(
            "unet",
            _Unet(teacher.unet),
            {
                "sample": lambda rows, h, w: torch.randn(rows, channels, h, w),
                "timestep": lambda _rows, h, w: torch.tensor((h * 131 + w * 17) % 1000),
                "encoder_hidden_states": lambda rows, _h, _w: torch.randn(rows, context, width),
            },
            {"sample": latents, "timestep": {}, "encoder_hidden_states": {0: batch}},
            ("out_sample",),
        ),
        Component(
            "vae_decoder",
            _Decoder(teacher.vae),
            {"latent_sample": lambda rows, h, w: torch.randn(rows, channels, h, w)},
            {"latent_sample": free},
            ("sample",),
        ),
        Component(
            "vae_encoder",
            _Encoder(teacher.vae),
            {"sample": lambda rows, h, w: torch.rand(rows, 3, h * pixels, w * pixels) * 2 - 1},
            {"sample": pictures},
            ("latent_parameters",),
        ),
    ]
