"""The rules that students are made of, each a change of the teacher's UNet config in place; Misfit where one cannot be
applied. spec.py says which student takes which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from ..model_config import WAVELET_GATING, native_latent_size

Config = dict[str, Any]

# lists with one entry a stage: these run from the outermost stage inwards, so the innermost stage comes last ...
_INWARD_LISTS = (
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "cross_attention_dim",
    "only_cross_attention",
    "transformer_layers_per_block",
)
# ... and these from the innermost stage outwards, so it is the first
_OUTWARD_LISTS = ("up_block_types", "reverse_transformer_layers_per_block")

BANDS = 4
"""of a two-dimensional wavelet transform"""
_PLAIN_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
"""blocks whose samplers take the hidden states alone; those of others are resnets"""


class Misfit(Exception):
    """A rule cannot be applied to a teacher; student_config turns it into an RcdeployError with a fix."""


def slashed(values: Any) -> str:
    """[1, 2, 10] -> '1/2/10', and a single value as it is."""
    return "/".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


def shorten_transformers(config: Config, layers: tuple[int, ...]) -> None:
    """transformer_layers_per_block becomes `layers` (KOALA, paper section H)."""
    teacher_layers = config["transformer_layers_per_block"]
    if config.get("addition_embed_type") != "text_time" or len(config["block_out_channels"]) != len(layers):
        raise Misfit(f"KOALA is for SDXL teachers (pooled text and sizes as added embedding, {len(layers)} stages).")
    if not isinstance(teacher_layers, list) or any(not isinstance(entry, int) for entry in teacher_layers):
        raise Misfit(f"KOALA needs a number of transformer layers for each stage, the teacher has {teacher_layers!r}.")
    if any(new > old for new, old in zip(layers, teacher_layers, strict=True)):
        raise Misfit(
            f"it has {slashed(teacher_layers)} transformer layers a stage, the student needs {slashed(layers)}."
        )
    config["transformer_layers_per_block"] = list(layers)


def layers_of(config: Mapping[str, Any]) -> list[int]:
    """Layers per block of each stage, outermost first; layers_per_block may be one number for all stages."""
    layers = config["layers_per_block"]
    return list(layers) if isinstance(layers, list | tuple) else [layers] * len(config["block_out_channels"])


def keep_single_layer(config: Config) -> None:
    """layers_per_block n -> 1, by keep_layers."""
    if max(layers_of(config)) < 2:
        raise Misfit("its blocks have one layer each already, there is none to remove.")
    keep_layers(config, (1,) * len(config["block_out_channels"]))


def keep_layers(config: Config, layers: tuple[int, ...]) -> None:
    """layers_per_block becomes `layers`, outermost stage first; one number where teacher and student need no more.

    Down blocks keep their first layers; up blocks, which have one layer more, the first ones and the last.
    """
    before = layers_of(config)
    if len(layers) != len(before):
        raise Misfit(f"layers {slashed(layers)} are for {len(layers)} stages, and {len(before)} are left.")
    if any(new > old for new, old in zip(layers, before, strict=True)):
        raise Misfit(f"it has {slashed(before)} layers a block, the student needs {slashed(layers)}.")
    is_list = isinstance(config["layers_per_block"], list)
    config["layers_per_block"] = list(layers) if is_list or len(set(layers)) > 1 else layers[0]
    # entries that are lists themselves count the transformer layers of each attention of the block (SSD-1B)
    for key, counts, last in (
        ("transformer_layers_per_block", layers, 0),
        ("reverse_transformer_layers_per_block", layers[::-1], 1),
    ):
        if isinstance(config.get(key), list) and len(config[key]) == len(counts):
            config[key] = [
                [*entry[:count], *entry[len(entry) - last :]] if isinstance(entry, list | tuple) else entry
                for entry, count in zip(config[key], counts, strict=True)
            ]


def drop_mid_block(config: Config) -> None:
    """mid_block_type None is diffusers' for 'no mid block'."""
    if config["mid_block_type"] is None:
        raise Misfit("it has no mid block to remove.")
    config["mid_block_type"] = None


def drop_innermost_stage(config: Config, notes: list[str]) -> None:
    """Every list with an entry a stage loses the innermost; the stage that is now innermost loses its downsampler."""
    widths = config["block_out_channels"]
    if len(widths) < 3:
        raise Misfit(f"it has {len(widths)} stages; one can be removed from three or more.")
    if widths[-1] != widths[-2]:
        notes.append(
            f"the two innermost stages differ in width ({widths[-2]} and {widths[-1]}): "
            "the teacher's weights do not fit (student.init = 'random')"
        )
    for key in _INWARD_LISTS:
        if isinstance(config.get(key), list):
            config[key] = config[key][:-1]
    for key in _OUTWARD_LISTS:
        if isinstance(config.get(key), list):
            config[key] = config[key][1:]


def narrow(config: Config, factor: float, notes: list[str]) -> None:
    """block_out_channels x factor, each to the nearest width that norm groups and attention heads divide."""
    widths = config["block_out_channels"]
    groups = config.get("norm_num_groups") or 1
    narrowed = []
    for stage, width in enumerate(widths):
        heads = _heads(config, stage)
        step = math.lcm(groups, heads)
        exact = factor * width
        rounded = max(1, math.floor(exact / step + 0.5)) * step
        if abs(rounded - exact) > 1e-6:
            divisors = f"{groups} groups and {heads} heads" if heads > 1 else f"{groups} groups"
            notes.append(f"block {stage}: {exact:g} rounded to {rounded}: must be divisible by {divisors}")
        narrowed.append(min(rounded, width))
    if narrowed == widths:
        raise Misfit(f"width x {factor:g} rounds to the teacher's own {slashed(widths)}, nothing would be removed.")
    config["block_out_channels"] = narrowed


def gate_wavelets(config: Config) -> None:
    """Wavelet gating in place of the samplers; diffusers has no key for it, so it is one of ours (SLIM, section I)."""
    widths = config["block_out_channels"]
    halvings = len(widths) - 1
    if not halvings:
        raise Misfit("it has one stage, and so no downsampler or upsampler for wavelet gating to replace.")
    if others := sorted({*config["down_block_types"], *config["up_block_types"]} - _PLAIN_BLOCKS):
        raise Misfit(f"the samplers of its {', '.join(others)} cannot be replaced by wavelet gating.")
    if uneven := [width for width in widths[1:] if width % BANDS]:
        raise Misfit(f"an upsampler of {uneven[0]} channels cannot be split into the {BANDS} bands of a wavelet.")
    try:
        height, width = native_latent_size(config)
    except RcdeployError as error:
        raise Misfit(error.message) from None
    if height % 2**halvings or width % 2**halvings:
        raise Misfit(
            f"its latents of {height} x {width} (sample_size) meet an odd side when they are halved {halvings} times; "
            "a wavelet transform halves even sides only."
        )
    config[WAVELET_GATING] = True


def _heads(config: Config, stage: int) -> int:
    """Number of attention heads of a stage (of its down, up and mid block), 1 where it has no attention."""
    stages = len(config["block_out_channels"])
    blocks = [config["down_block_types"][stage], config["up_block_types"][stages - 1 - stage]]
    if stage == stages - 1:
        blocks.append(config["mid_block_type"] or "")
    if not any("Attn" in block for block in blocks):
        return 1
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    count = heads[stage] if isinstance(heads, list) else heads
    return int(count or 1)
