"""Tiny models of families that only diffusers knows, with random weights: PixArt and SD-3."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import CONTEXT, tokenizer
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 32
"""of every text encoder"""


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 encoder and a tokenizer of letters."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*special, "▁", *"abcdefghijklmnopqrstuvwxyz"]
    config = T5Config(vocab_size=len(pieces), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config), T5Tokenizer(
        vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0
    )


def vae(**config: object) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        **config,
    )


def save_pixart(folder: Path) -> Path:
    """Images of 16 x 16 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder, text_tokenizer = t5()
        PixArtAlphaPipeline(
            tokenizer=text_tokenizer,
            text_encoder=text_encoder,
            vae=vae(),
            transformer=PixArtTransformer2DModel(
                sample_size=8,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                cross_attention_dim=16,
                caption_channels=WIDTH,
            ),
            scheduler=DPMSolverMultistepScheduler(),
        ).save_pretrained(folder)
    return folder


def save_sd3(folder: Path) -> Path:
    """Images of 16 x 16 pixels, three text encoders."""
    clip_tokenizer = tokenizer()
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=WIDTH // 2,
        intermediate_size=16,
        projection_dim=WIDTH // 2,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,
        pad_token_id=clip_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder, text_tokenizer = t5()
        StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=1,
                in_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=WIDTH,
                caption_projection_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                out_channels=4,
                pos_embed_max_size=16,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06),
            text_encoder=CLIPTextModelWithProjection(clip),
            tokenizer=clip_tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(clip),
            tokenizer_2=tokenizer(),
            text_encoder_3=text_encoder,
            tokenizer_3=text_tokenizer,
        ).save_pretrained(folder)
    return folder
