"""The configs of Stable Diffusion XL's networks (base model), so that KOALA students are counted without a download.

Keys that are not named here have the defaults of diffusers and transformers, as in the original files.
"""

from __future__ import annotations

from .sd14 import SD14_CONFIGS, Config

SDXL_UNET_CONFIG: Config = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""The UNet of stabilityai/stable-diffusion-xl-base-1.0."""

SDXL_CONFIGS: dict[str, Config] = {
    "unet": SDXL_UNET_CONFIG,
    "text_encoder": SD14_CONFIGS["text_encoder"],
    "text_encoder_2": {
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "vae": {**SD14_CONFIGS["vae"], "sample_size": 1024, "scaling_factor": 0.13025},
}
"""By component; the text encoders are those of CLIP ViT-L/14 and OpenCLIP ViT-bigG/14."""
