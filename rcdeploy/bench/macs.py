"""Parameters and multiply-accumulates (MACs) of UNet, text encoder and VAE decoder, from shapes alone (meta device).

Two totals, because both are quoted. THOP 0.1.1, which the paper's Table A uses, counts modules (convolutions, linears
and norms) and so misses the products QK^T and AV inside attention, which are functions. The other total has every
matrix product and nothing else: half of what torch.utils.flop_counter counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.guidance import TIMESTEP_COND

from ..condition import added_shapes
from ..student.build import build_on_meta
from ..student.wavelet import HaarDwt, HaarIdwt
from ..text_encoding import text_encoders
from ..vae import VaeDecoder, vae_from_config


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one call of a network with a batch of one (guidance doubles the UNet's).

    Attributes:
        thop: as THOP 0.1.1 counts, and wavelet transforms as the convolutions that they are.
        norms: the part of `thop` that is norms and pooling, not matrix products.
        attention: QK^T and AV.
    """

    thop: int
    norms: int
    attention: int

    @property
    def total(self) -> int:
        """Every matrix product: convolutions, linears, QK^T and AV."""
        return self.thop - self.norms + self.attention


def parameters(module: nn.Module) -> int:
    """Number of parameters; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def unet_macs(
    unet_or_config: UNet2DConditionModel | Mapping[str, Any],
    latent_size: int | tuple[int, int] | None = None,
    text_length: int = 77,
) -> Macs:
    """MACs of one call on latents [1, in_channels, height, width] and prompt embeddings [1, text_length, width].

    A UNet with weights is left alone: its config is built again on the meta device.

    Args:
        unet_or_config: a UNet or its config.
        latent_size: (height, width) in latent pixels, or one number for a square; by default the config's sample_size.
        text_length: in tokens.

    Raises:
        RcdeployError: no size is known, or the UNet needs an added condition that is not known here.
    """
    unet = unet_or_config
    if isinstance(unet, Mapping) or unet.device.type != "meta":
        unet = build_on_meta(unet if isinstance(unet, Mapping) else unet.config)
    height, width = latent_size_of(unet, latent_size)
    return module_macs(unet, **unet_inputs(unet, height, width, text_length, "meta"))


def text_encoder_macs(text_encoder: nn.ModuleList, text_length: int = 77) -> Macs:
    """MACs of one prompt of text_length tokens, by the one or two text encoders of text_encoder_on_meta."""
    ids = torch.zeros(1, text_length, dtype=torch.long, device="meta")
    macs = [module_macs(encoder, input_ids=ids) for encoder in text_encoder]
    return Macs(sum(m.thop for m in macs), sum(m.norms for m in macs), sum(m.attention for m in macs))


def vae_decoder_macs(decoder: VaeDecoder, latent_size: tuple[int, int]) -> Macs:
    """MACs of one image from latents of (height, width) latent pixels, by a decoder of vae_decoder_on_meta."""
    return module_macs(decoder, latents=torch.empty(1, decoder.latent_channels, *latent_size, device="meta"))


def text_encoder_on_meta(configs: Mapping[str, Mapping[str, Any]]) -> nn.ModuleList:
    """Build the text encoders of text_encoder/config.json and, for SDXL, text_encoder_2/config.json without storage.

    Raises RcdeployError if that fails.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return text_encoders(configs).eval()
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise RcdeployError(f"no text encoder can be built from text_encoder/config.json: {error}") from error


def vae_decoder_on_meta(config: Mapping[str, Any]) -> VaeDecoder:
    """Build the decoder of vae/config.json without storage. Raises RcdeployError if that fails."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return VaeDecoder(vae_from_config(config).eval())
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RcdeployError(f"no VAE can be built from vae/config.json: {error}") from error


def module_macs(module: nn.Module, **inputs: Any) -> Macs:
    """MACs of module(**inputs), counted during one call: on the meta device, or with weights in full."""
    counts = {"products": 0, "norms": 0}
    handles = [part.register_forward_hook(_count_into(counts)) for part in module.modules() if type(part) in _RULES]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    every_product = flops.get_total_flops() // 2
    return Macs(
        thop=counts["products"] + counts["norms"],
        norms=counts["norms"],
        attention=every_product - counts["products"],
    )


def _conv_macs(module: Any, inputs: torch.Tensor, result: torch.Tensor) -> int:
    kernel: int = module.weight[0, 0].numel()
    return int(result.numel() * (module.in_channels // module.groups) * kernel)


def _linear_macs(module: Any, inputs: torch.Tensor, result: torch.Tensor) -> int:
    return int(module.in_features * result.numel())


def _norm_macs(module: Any, inputs: torch.Tensor, result: torch.Tensor) -> int:
    # THOP: subtract and divide, twice as much with scale and shift
    return int(inputs.numel() * (4 if module.elementwise_affine else 2))


def _haar_macs(module: Any, inputs: torch.Tensor, result: torch.Tensor) -> int:
    # each input has a part in four outputs, in both directions
    return 4 * inputs.numel()


def _pool_macs(module: Any, inputs: torch.Tensor, result: torch.Tensor) -> int:
    return int(result.numel())


# THOP 0.1.1's rules (kind, rule) for the modules that these networks may hold. As in THOP they hold for the exact class
# and skip GroupNorm, SiLU, GELU and embeddings.
_RULES: dict[type[nn.Module], tuple[str, Any]] = {
    nn.Conv1d: ("products", _conv_macs),
    nn.Conv2d: ("products", _conv_macs),
    nn.Linear: ("products", _linear_macs),
    nn.LayerNorm: ("norms", _norm_macs),
    nn.AvgPool2d: ("norms", _pool_macs),
    HaarDwt: ("products", _haar_macs),
    HaarIdwt: ("products", _haar_macs),
}


def _count_into(counts: dict[str, int]) -> Any:
    """A forward hook that adds each call's MACs to counts['products'] or counts['norms']."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        kind, rule = _RULES[type(module)]
        counts[kind] += rule(module, inputs[0], result)

    return hook


def latent_size_of(unet: UNet2DConditionModel, latent_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) in latent pixels. Any size is possible: diffusers rounds halves up and crops on the way back."""
    size = unet.config.sample_size if latent_size is None else latent_size
    if size is None:
        raise RcdeployError("the UNet's config has no sample_size", fix="Give the size of the latents, such as 64.")
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if height < 1 or width < 1:
        raise RcdeployError(f"latents of {height} x {width} are impossible", fix="Give a size such as 64.")
    return height, width


def unet_inputs(unet: UNet2DConditionModel, height: int, width: int, text_length: int, device: str) -> dict[str, Any]:
    """Arguments of the UNet's forward with a batch of one: SDXL's pooled text and sizes, and guidance, too.

    Numbers are zeros: they change neither MACs nor, in dense arithmetic, time. Raises RcdeployError for a UNet that
    needs an added condition that is not known here.
    """
    config = unet.config
    text_width = config.encoder_hid_dim or config.cross_attention_dim
    if isinstance(text_width, list | tuple):
        text_width = text_width[0]
    inputs: dict[str, Any] = {
        "sample": torch.zeros(1, config.in_channels, height, width, device=device),
        "timestep": torch.zeros(1, device=device),
        "encoder_hidden_states": torch.zeros(1, text_length, text_width, device=device),
    }
    if config.addition_embed_type == "text_time":
        added = {k: torch.zeros(*v, device=device) for k, v in added_shapes(config, 1).items()}
        inputs["added_cond_kwargs"] = {k: v for k, v in added.items() if k != TIMESTEP_COND}
    elif config.addition_embed_type not in (None, "text") or config.encoder_hid_dim_type not in (None, "text_proj"):
        raise RcdeployError(
            f"MACs of a UNet with addition_embed_type {config.addition_embed_type!r} and encoder_hid_dim_type "
            f"{config.encoder_hid_dim_type!r} cannot be counted",
            fix="Text-conditioned UNets can: SD-1.x, SD-2.x, SDXL and their kin.",
        )
    if config.time_cond_proj_dim:
        inputs[TIMESTEP_COND] = torch.zeros(1, config.time_cond_proj_dim, device=device)
    if config.num_class_embeds is not None and config.class_embed_type is None:
        inputs["class_labels"] = torch.zeros(1, dtype=torch.long, device=device)
    return inputs
