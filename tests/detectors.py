"""Tiny zero-shot detectors of random weights, as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import tokenizer
from transformers import (
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "red", "bag", "coat"]


def save_owl(folder: Path) -> Path:
    words = tokenizer()
    each = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    config = Owlv2Config(
        text_config={**each, **text, "initializer_range": 1.0},
        vision_config={**each, "image_size": 32, "patch_size": 8, "initializer_range": 1.0},
        projection_dim=16,
    )
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    processor = Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    Owlv2Processor(processor, words).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    small_swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    layers = {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=small_swin, text_config={"model_type": "bert", **text, "vocab_size": len(WORDS)},
        **layers, **heads, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=20, max_text_len=16,
        num_feature_levels=4,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    words = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(processor, words).save_pretrained(folder)
    return folder
