"""The networks of a package as modules with named inputs and outputs, example inputs and dynamic dimensions.

Input and output names are those that diffusers' ONNX pipelines and Optimum read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from rcdeploy.condition import Condition, added_shapes, predict
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_config import size_multiple
from rcdeploy.text_encoding import SDXL_LAYER
from rcdeploy.vae import VaeEncoder
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.guidance import TIMESTEP_COND, guidance_embedding


@dataclass(frozen=True)
class Component:
    """A network to export.

    Args:
        name: of its folder in the package.
        load: makes the module, which takes the inputs by position, of the model's network; a component itself keeps no
            weights, so that who exports one after another can release each.
        inputs: name -> makes an example for (batch size, latent height, latent width).
        dynamic: name -> {dimension: its range}, for dimensions that stay open.
        outputs: their names.
        compared: those that are compared with torch; by default the first.
    """

    name: str
    load: Callable[[], nn.Module]
    inputs: dict[str, Callable[[int, int, int], Tensor]]
    dynamic: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]
    compared: tuple[str, ...] = ()

    @property
    def module(self) -> nn.Module:
        return self.load()

    @property
    def compared_outputs(self) -> tuple[str, ...]:
        return self.compared or self.outputs[:1]

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


class _SdxlTextEncoder(nn.Module):
    """All hidden states, as Optimum and openvino-genai read them, after two outputs that differ by encoder."""

    def __init__(self, model: nn.Module, first: tuple[str, str]) -> None:
        """first: names of transformers' outputs that come before the hidden states."""
        super().__init__()
        self.model = model
        self.first = first

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        output = self.model(input_ids=input_ids, output_hidden_states=True)
        return (*(output[name] for name in self.first), *output.hidden_states)


class _Unet(nn.Module):
    def __init__(self, model: nn.Module, added: Sequence[str]) -> None:
        """added: names of the inputs after the first three."""
        super().__init__()
        self.model = model
        self.added = tuple(added)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
        third: Tensor | None = None,
    ) -> Tensor:
        given = [value for value in (first, second, third) if value is not None]
        condition = Condition(encoder_hidden_states, dict(zip(self.added, given, strict=True)))
        return predict(self.model, sample, timestep, condition)


SDXL_OUTPUTS = {
    "text_encoder": ("last_hidden_state", "pooler_output"),
    "text_encoder_2": ("text_embeds", "last_hidden_state"),
}
"""before the hidden states, in the order that others expect"""


def components(model: LatentDiffusionModel, encoder: bool = True) -> list[Component]:
    """The networks of a text-to-image model, on the CPU, in evaluation mode. encoder: with that of the VAE.

    Raises RcdeployError for a text encoder that a package cannot carry.
    """
    channels = int(model.unet_config["in_channels"])
    pixels = model.pixels_per_latent
    multiple = size_multiple(model.unet_config)
    context = int(model.tokenizer.model_max_length)
    embed_width = int(model.unet_config["cross_attention_dim"])
    batch = Dim("batch", min=1, max=63)  # diffusers branches at 64: a wider range is traced twice
    latent_height = Dim("latent_height", min=1, max=512)
    latent_width = Dim("latent_width", min=1, max=512)
    unet_latents = {0: batch, 2: multiple * Dim("height", min=1, max=64), 3: multiple * Dim("width", min=1, max=64)}
    decoder_latents = {0: batch, 2: latent_height, 3: latent_width}
    encoder_images = {0: batch, 2: pixels * latent_height, 3: pixels * latent_width}

    added = _added_inputs(model)
    networks = [
        *_text_encoders(model, batch),
        Component(
            "unet",
            lambda: _Unet(model.unet, tuple(added)),
            {
                "sample": lambda n, h, w: torch.randn(n, channels, h, w),
                "timestep": lambda _n, h, w: torch.tensor((h * 131 + w * 17) % 1000),
                "encoder_hidden_states": lambda n, _h, _w: torch.randn(n, context, embed_width),
                **added,
            },
            {
                "sample": unet_latents,
                "timestep": {},
                "encoder_hidden_states": {0: batch},
                **{k: {0: batch} for k in added},
            },
            ("out_sample",),
        ),
        Component(
            "vae_decoder",
            lambda: model.vae_decoder,
            {"latent_sample": lambda n, h, w: torch.randn(n, channels, h, w)},
            {"latent_sample": decoder_latents},
            ("sample",),
        ),
    ]
    if encoder:
        networks.append(
            Component(
                "vae_encoder",
                lambda: VaeEncoder(model.vae),
                {"sample": lambda n, h, w: torch.rand(n, 3, h * pixels, w * pixels) * 2 - 1},
                {"sample": encoder_images},
                ("latent_parameters",),
            )
        )
    return networks


def _text_encoders(model: LatentDiffusionModel, batch: Any) -> list[Component]:
    names = [name for name in model.components if name.startswith("text_encoder")]
    return [_text_encoder(model, name, batch) for name in names]


def _text_encoder(model: LatentDiffusionModel, name: str, batch: Any) -> Component:
    """Raises RcdeployError for a text encoder that a package cannot carry."""
    config: Any = getattr(model, name).config
    if getattr(config, "use_attention_mask", False):
        raise RcdeployError(f"{name}: it needs an attention mask, which packages do not support")
    tokenizer = getattr(model, name.replace("text_encoder", "tokenizer"))
    context = int(tokenizer.model_max_length)

    def token_ids(batch_size: int, _height: int, _width: int) -> Tensor:
        ids = torch.randint(0, config.vocab_size, (batch_size, context))
        ids[:, -1] = tokenizer.eos_token_id
        return ids

    inputs: tuple[Any, Any] = {"input_ids": token_ids}, {"input_ids": {0: batch}}
    if not model.has_two_text_encoders:
        outputs = ("last_hidden_state", "pooler_output")
        return Component(name, lambda: _TextEncoder(getattr(model, name)), *inputs, outputs)
    first = SDXL_OUTPUTS[name]
    hidden = tuple(f"hidden_states.{i}" for i in range(config.num_hidden_layers + 1))
    taken = f"hidden_states.{config.num_hidden_layers + 1 + SDXL_LAYER}"  # by SDXL
    compared = (taken, *(output for output in first if output == "text_embeds"))
    return Component(name, lambda: _SdxlTextEncoder(getattr(model, name), first), *inputs, (*first, *hidden), compared)


def _added_inputs(model: LatentDiffusionModel) -> dict[str, Callable[[int, int, int], Tensor]]:
    """The UNet's further inputs: SDXL's pooled text and sizes, an embedding of the guidance scale."""
    pixels = model.pixels_per_latent
    makers: dict[str, Callable[[int], Callable[[int, int, int], Tensor]]] = {
        "text_embeds": lambda width: lambda n, _h, _w: torch.randn(n, width),
        "time_ids": lambda _: lambda n, h, w: torch.tensor([[h, w, 0, 0, h, w]] * n).float() * pixels,
        TIMESTEP_COND: lambda width: lambda n, h, w: torch.from_numpy(guidance_embedding([1 + (h + w) % 8] * n, width)),
    }
    return {name: makers[name](shape[1]) for name, shape in added_shapes(model.unet_config, 1).items()}
