"""Dynamic wavelet gating in place of a UNet's down- and upsamplers (SLIM, arXiv 2211.17106, section 4; used in the
paper's section I).

A Haar transform splits features into four bands (LL, LH, HL, HH) of half the size. Each band is weighted by a gate that
depends on the features, and so on image and timestep: g = sigmoid(FFN(AvgPool(X))), one number for each band.

    WaveletDown    X' = sum_i g_i X_i, X_i the bands of X
    WaveletUp      X' = IDWT(g_i X_i), X_i the quarters of X's channels

Not stated there, and chosen here: the FFN's hidden layer, a quarter of the channels; and the 1 x 1 convolution that
brings WaveletUp's result, a quarter of the channels, back to all of them. Transforms are fixed convolutions, which
every format can export. diffusers alone refuses such weights: `conv` of WaveletUp is not of its upsampler's shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from rcdeploy_runtime.errors import RcdeployError

from ..model_config import WAVELET_GATING
from .rules import BANDS

HAAR = ([[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]])
"""Twice the orthonormal filters of LL, LH, HL, HH: rows are lines of the image"""


class _Haar(nn.Module):
    """Holds the filters [4 channels, 1, 2, 2], channel by channel; a buffer that no file of weights holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        filters = torch.tensor(HAAR, dtype=torch.float32)[:, None] / 2
        self.register_buffer("filters", filters.repeat(channels, 1, 1, 1), persistent=False)
        self.filters: Tensor


class HaarDwt(_Haar):
    """Orthonormal Haar transform: [n, c, h, w] -> [n, 4 c, h/2, w/2], the four bands of channel i at 4 i .. 4 i + 3."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters, stride=2, groups=self.channels)


class HaarIdwt(_Haar):
    """The inverse: [n, 4 c, h, w] -> [n, c, 2 h, 2 w]."""

    def forward(self, bands: Tensor) -> Tensor:
        return F.conv_transpose2d(bands, self.filters, stride=2, groups=self.channels)


class BandGates(nn.Module):
    """sigmoid(FFN(AvgPool(X))): [n, c, h, w] -> [n, 4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 4, 1)
        self.ffn = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, BANDS))

    def forward(self, x: Tensor) -> Tensor:
        gates: Tensor = self.ffn(x.mean((2, 3)))
        return gates.sigmoid()


class WaveletDown(nn.Module):
    """WG-Down: [n, c, h, w] -> [n, c, h/2, w/2]. The gated sum has as many channels as the next block reads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gates = BandGates(channels)
        self.dwt = HaarDwt(channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Raises RcdeployError for odd sides, which other downsamplers round up."""
        height, width = hidden_states.shape[-2:]
        if height % 2 or width % 2:
            raise RcdeployError(
                f"wavelet gating cannot halve features of {height} x {width}: both sides must be even",
                fix="Take a size whose latents can be halved as often as the UNet has stages but one, such as 64 x 64.",
            )
        bands = self.dwt(hidden_states).unflatten(1, (self.channels, BANDS))
        return (bands * self.gates(hidden_states)[:, None, :, None, None]).sum(2)


class WaveletUp(nn.Module):
    """WG-Up: [n, c, h, w] -> [n, c, 2 h, 2 w]. The inverse transform has c / 4 channels; a convolution makes them c."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gates = BandGates(channels)
        self.idwt = HaarIdwt(channels // BANDS)
        self.conv = nn.Conv2d(channels // BANDS, channels, 1)

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """output_size: diffusers gives the skip's (h, w) where sides are odd, which WaveletDown refuses."""
        bands = hidden_states.unflatten(1, (BANDS, self.channels // BANDS))
        bands = bands * self.gates(hidden_states)[:, :, None, None, None]
        result: Tensor = self.conv(self.idwt(bands.transpose(1, 2).flatten(1, 2)))
        return result


def put_in_wavelet_gating(unet: UNet2DConditionModel) -> None:
    """Replaces every downsampler and upsampler, in place, and notes it in the UNet's config.

    Raises RcdeployError for a UNet that has none, or other ones than diffusers' plain samplers.
    """
    replaced = 0
    for blocks, name, plain, gated in (
        (unet.down_blocks, "downsamplers", Downsample2D, WaveletDown),
        (unet.up_blocks, "upsamplers", Upsample2D, WaveletUp),
    ):
        for block in blocks:
            for i, sampler in enumerate(getattr(block, name, None) or ()):
                if type(sampler) is not plain or sampler.channels != sampler.out_channels or sampler.channels % BANDS:
                    raise RcdeployError(
                        f"a {type(sampler).__name__} of a {type(block).__name__} cannot be replaced by wavelet gating",
                        fix="Wavelet gating is for UNets of (CrossAttn)Down- and UpBlock2D whose widths 4 divides.",
                    )
                getattr(block, name)[i] = gated(sampler.channels)
                replaced += 1
    if not replaced:
        raise RcdeployError(
            "the UNet has no downsampler or upsampler for wavelet gating to replace",
            fix=f"Take {WAVELET_GATING} out of its config.json, or take a UNet of two stages or more.",
        )
    unet.register_to_config(**{WAVELET_GATING: True})


def gating_names(unet: nn.Module) -> set[str]:
    """Names of the weights of wavelet gating, which no other UNet has."""
    modules = ((name, part) for name, part in unet.named_modules() if isinstance(part, WaveletDown | WaveletUp))
    return {f"{name}.{key}" for name, part in modules for key in part.state_dict()}
