"""Zero-shot object detection by a model in transformers' layout: OWL-ViT, OWLv2, Grounding DINO."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from rcdeploy_runtime.files import read_json

from ..prompts.local_models import LOADING, check_complete, loading_errors
from .images import to_pil
from .spatial import Box, reading_size

THRESHOLDS = {"owlvit": 0.1, "owlv2": 0.1, "grounding-dino": 0.25}
"""model type -> how sure it has to be of a box: transformers' own defaults"""
OWL_TEMPLATE = "a photo of a {}"
"""OWL's text encoder is CLIP's, and was trained on sentences"""


class ZeroShotDetector:
    """A detector from a folder on this machine: it finds objects of any name."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Raises RcdeployError when `folder` holds no such model in .safetensors. Its own code is never run."""
        with loading_errors(folder, "zero-shot detector"):
            self.kind = read_json(folder / "config.json").get("model_type")
            if self.kind not in THRESHOLDS:
                raise ValueError(f"its model_type is {self.kind!r}, none of {', '.join(THRESHOLDS)}")
            self.model, info = AutoModelForZeroShotObjectDetection.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **LOADING
            )
            check_complete(info)
            self.processor = AutoProcessor.from_pretrained(folder, **LOADING)
        self.threshold = THRESHOLDS[self.kind]
        self.device = torch.device(device)
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, image: Tensor, names: Sequence[str]) -> list[Box]:
        """image uint8 [3, h, w] and different names -> boxes, each with the name that fits it best."""
        texts = [name if self.kind == "grounding-dino" else OWL_TEMPLATE.format(name) for name in names]
        inputs = self.processor(images=to_pil(image.cpu()), text=[texts], return_tensors="pt").to(self.device)
        output = self.model(**inputs)
        logits = output.logits[0]
        if self.kind == "grounding-dino":
            logits = _by_phrase(logits, inputs.input_ids[0].tolist(), self.processor.tokenizer)
        best, labels = logits.max(1)
        corners = self._corners(output.pred_boxes[0], image.shape[1], image.shape[2])
        return [
            Box(names[label], score, (box[0], box[1], box[2], box[3]))
            for score, label, box in zip(best.sigmoid().tolist(), labels.tolist(), corners.tolist(), strict=True)
            if score > self.threshold
        ]

    def _corners(self, boxes: Tensor, h: int, w: int) -> Tensor:
        """(x, y, width, height) [n, 4] as fractions of the image -> (left, top, right, bottom) in pixels."""
        height, width = reading_size(h, w)
        if self.kind == "owlv2":  # fractions of a square that the image is padded to
            height = width = max(height, width)
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([centre - half, centre + half], 1) * boxes.new_tensor([width, height, width, height])


def _by_phrase(logits: Tensor, ids: Sequence[int], tokenizer: Any) -> Tensor:
    """Logits of boxes for tokens [n, tokens] -> for phrases, each by its likeliest token [n, phrases].

    ids: of the text that Grounding DINO reads, "a cat. a dog."
    """
    ends = {tokenizer.convert_tokens_to_ids("."), *tokenizer.all_special_ids}
    spans = [[i for i, _ in run] for is_end, run in groupby(enumerate(ids), lambda x: x[1] in ends) if not is_end]
    return torch.stack([logits[:, span].max(1).values for span in spans], 1)
