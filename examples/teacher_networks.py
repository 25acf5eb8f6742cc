"""The embedded teachers' networks, as they are before training: SD-1.4's topology and SDXL's at toy width."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from fashion import IMAGE_SIZE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rcdeploy.student.init import slice_channels

CONTEXT = 32
XL_CONTEXT = 20
"""tokens that the SDXL-shaped teacher reads: the longest caption has 18"""
TEXT_WIDTH, SECOND_TEXT_WIDTH = 64, 32
"""of the text encoders: the only one or SDXL's first, and SDXL's second"""
LATENT_CHANNELS = 8
"""SD has 4; at 8 x 8 they lose the clothes' shapes"""


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        mid_block_add_attention=False,  # convolutions alone: it can learn from parts of images
        sample_size=IMAGE_SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(40, 40, 80, 80),
        layers_per_block=2,
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
    )


def build_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level BPE, its merges learnt from our captions; ids in CLIP's order."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [x + "</w>" for x in letters] + ["".join(m) for m in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes tokenizer.json alone; transformers 4, and Optimum with it, reads these two
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return tokenizer


XL_DEPTHS = (1, 2, 7)
"""transformer layers of each stage (SDXL: 1, 2, 10); koala-1b keeps six of the innermost"""


def build_xl_unet(depths: tuple[int, ...] = XL_DEPTHS) -> UNet2DConditionModel:
    """SDXL's blocks. depths: transformer layers of each stage."""
    size_width = 16
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(40, 40, 48),
        layers_per_block=2,
        transformer_layers_per_block=depths,
        attention_head_dim=(4, 4, 4),
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH + SECOND_TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=size_width,
        projection_class_embeddings_input_dim=SECOND_TEXT_WIDTH + 6 * size_width,
    )


def copy_first_weights(unet: nn.Module, fashion: nn.Module) -> None:
    """Begins `unet` with the fashion teacher's UNet, stage by resolution, the innermost by every n-th channel.

    Pooled text, sizes and the second text encoder change nothing yet.
    """
    source = fashion.state_dict()
    for name, weights in unet.state_dict().items():  # these share memory with the parameters
        # its up blocks begin one stage further inside
        old = source.get(re.sub(r"^up_blocks\.(\d)", lambda m: f"up_blocks.{int(m[1]) + 1}", name))
        if name.startswith("add_embedding.linear_2"):
            weights.zero_()
        elif old is not None:
            old = old.flatten(1) if old.ndim == 4 and weights.ndim == 2 else old  # 1 x 1 convolutions are linear here
            for dim, size in enumerate(weights.shape):
                old = fewer_channels(old, dim, size)
            weights.zero_()
            weights[tuple(slice(size) for size in old.shape)] = old


def fewer_channels(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Every n-th channel of a dimension that is too long, of hidden states and of the skip that is read beside them."""
    hidden, skip = 80, 40
    if (tensor.shape[dim], size) == (hidden + skip, 48 + skip):
        parts = tensor.split([hidden, skip], dim)
        return torch.cat([slice_channels(parts[0], dim, 48), parts[1]], dim)
    return slice_channels(tensor, dim, min(size, tensor.shape[dim]))


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(text_config(tokenizer, TEXT_WIDTH))


def build_second_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """SDXL's second, whose projected pooled text the UNet is told too."""
    return CLIPTextModelWithProjection(text_config(tokenizer, SECOND_TEXT_WIDTH))


def noise_schedule() -> DDIMScheduler:
    """SD-1.4's."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def xl_noise_schedule() -> EulerDiscreteScheduler:
    """SDXL's: the betas of SD-1.4."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
