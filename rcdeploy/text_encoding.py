"""Prompts to conditions: one CLIP text encoder (SD-1.x, SD-2.x), or two with pooled text and image sizes (SDXL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.limits import MAX_CONTEXT

from .condition import Condition, to_device

SDXL_LAYER = -2
"""the hidden states of SDXL's text encoders that make its prompt embeddings: those before the last layer"""


def load_tokenizer(folder: Path) -> Any:
    """Raises RcdeployError for one that cannot be read; code that comes with it is never run."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # its Rust side and its many classes raise whatever they like
        raise RcdeployError(f"the tokenizer cannot be loaded from {folder.parent}: {error}") from error
    length = tokenizer.model_max_length
    if tokenizer.pad_token is None or type(length) is not int or not 1 <= length <= MAX_CONTEXT:
        raise RcdeployError(
            f"{folder}: it has the padding token {tokenizer.pad_token!r} and the "
            f"model_max_length {length!r}; it needs a token, and 1 to {MAX_CONTEXT:,}",
            fix="Copy tokenizer_config.json from the model again.",
        )
    return tokenizer


def tokenise(tokenizer: Any, encoder: Any, prompts: Sequence[str], folder: Path) -> Any:
    """Token ids and mask, padded and cut to the context.

    folder: of the model, for messages. Raises RcdeployError for a tokenizer whose tokens the encoder does not know.
    """
    try:
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
    except Exception as error:  # of its Rust side
        raise RcdeployError(f"the tokenizer in {folder} cannot read a prompt: {error}") from error
    config = encoder.config
    if tokens.input_ids.shape[1] > config.max_position_embeddings or tokens.input_ids.max() >= config.vocab_size:
        raise RcdeployError(
            f"the tokenizer in {folder} does not belong to the text encoder, which knows "
            f"{config.vocab_size:,} tokens and reads {config.max_position_embeddings} of them",
            fix="Copy the folder tokenizer/ of the model again.",
        )
    return tokens


@torch.no_grad()
def encode(tokenizer: Any, encoder: Any, prompts: Sequence[str], folder: Path) -> Condition:
    """The last hidden states of one encoder, [n, tokens, width]."""
    tokens = tokenise(tokenizer, encoder, prompts, folder)
    use_mask = getattr(encoder.config, "use_attention_mask", False)
    mask = to_device(tokens.attention_mask, encoder.device) if use_mask else None
    return Condition(encoder(to_device(tokens.input_ids, encoder.device), attention_mask=mask).last_hidden_state)


@torch.no_grad()
def encode_sdxl(
    tokenizers: Sequence[Any],
    encoders: Sequence[Any],
    prompts: Sequence[str],
    image_size: tuple[int, int],
    folder: Path,
) -> Condition:
    """SDXL's condition: hidden states of both encoders side by side [n, tokens, width 1 + width 2], and added
    "text_embeds" [n, width 2], the second encoder's projected pooled text, and "time_ids" [n, 6]: original size,
    crop, target size (SDXL, Podell et al. 2023, section 2.2). The image is neither cropped nor resized.

    image_size: (height, width) in pixels.
    """
    hidden, pooled = [], None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        tokens = tokenise(tokenizer, encoder, prompts, folder)
        output = encoder(to_device(tokens.input_ids, encoder.device), output_hidden_states=True)
        hidden.append(output.hidden_states[SDXL_LAYER])
        pooled = output[0]  # of the second, as diffusers' pipeline reads it
    assert pooled is not None
    return Condition(torch.cat(hidden, dim=-1), {"text_embeds": pooled, "time_ids": time_ids(image_size, pooled)})


def time_ids(image_size: tuple[int, int], pooled: Tensor) -> Tensor:
    """[n, 6] in the precision and on the device of pooled [n, width]."""
    height, width = image_size
    row = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype, device=pooled.device)
    return row.repeat(len(pooled), 1)


def zeros_like(condition: Condition) -> Condition:
    """SDXL's null condition (force_zeros_for_empty_prompt): no text at all, the same sizes."""
    added = {k: v if k == "time_ids" else torch.zeros_like(v) for k, v in condition.added.items()}
    return Condition(torch.zeros_like(condition.prompt_embeds), added)


def text_encoders(configs: Mapping[str, Mapping[str, Any]]) -> nn.ModuleList:
    """With random weights, from a model's configs: "text_encoder", and "text_encoder_2" where it has one."""
    encoders = [CLIPTextModel(CLIPTextConfig.from_dict(dict(configs["text_encoder"])))]
    if "text_encoder_2" in configs:
        encoders.append(CLIPTextModelWithProjection(CLIPTextConfig.from_dict(dict(configs["text_encoder_2"]))))
    return nn.ModuleList(encoders)
