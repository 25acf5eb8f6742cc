"""The configs of Stable Diffusion 2.1's networks: the 512-pixel model (epsilon) and the 768-pixel one (v-prediction).

Beside SD-1.x: prompt embeddings of width 1024 from OpenCLIP's ViT-H/14, heads of 64 channels (so that their *number*,
which diffusers calls attention_head_dim, grows with the width), and linear projections around the transformers.

The text encoder has 24 layers, and SD-2 was trained on the output of the 23rd, after the final norm. In diffusers'
layout the 24th is left out and num_hidden_layers is 23: last_hidden_state is already right, and nothing may be skipped.
SD-2.0's networks have the same shapes.
"""

from __future__ import annotations

from .sd14 import SD14_CONFIGS, SD14_UNET_CONFIG, Config

SD21_BASE_CONFIGS: dict[str, Config] = {
    "unet": SD14_UNET_CONFIG
    | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 512,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "vae": SD14_CONFIGS["vae"],
}
"""By component, of stable-diffusion-2-1-base. The text encoder's special ids are its config.json's, which are not its
tokenizer's: only the pooled output reads them, and nobody that."""

SD21_CONFIGS: dict[str, Config] = SD21_BASE_CONFIGS | {
    "unet": SD21_BASE_CONFIGS["unet"] | {"sample_size": 96, "upcast_attention": True},
    "vae": SD21_BASE_CONFIGS["vae"] | {"sample_size": 768},
}
"""By component, of stable-diffusion-2-1."""
