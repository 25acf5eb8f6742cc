"""Configs of two small UNets, one like SD-1.4's and one like SDXL's; their students, and the outputs of these."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from rcdeploy.student.spec import student_config

Config = dict[str, Any]

TOY: Config = {
    "sample_size": 8,
    "block_out_channels": (40, 40, 80, 80),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 6,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
TOY_XL: Config = {
    "sample_size": 8,
    "block_out_channels": [8, 16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [2, 4, 8],
    "cross_attention_dim": 6,
    "norm_num_groups": 4,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 30,
}


def student_of(name: str) -> Config:
    return student_config(name, TOY)[0]


def same_weights(one: UNet2DConditionModel, other: UNet2DConditionModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def run_unet(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 6, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([100, 800]), text).sample
