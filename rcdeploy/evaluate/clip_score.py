"""CLIP score: the similarity of an image and its prompt by a CLIP model in transformers' layout (paper: ViT-g/14)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

from ..hub import local_folder
from .images import normalization

FOLDER = "Give a folder with config.json, model.safetensors and the tokenizer, as transformers writes it."


def clip_folder(path: Path) -> Path:
    """The folder of a CLIP model, fetched if `path` is its name on the hub; nothing is loaded yet.

    Raises RcdeployError when it cannot be fetched, or its config is of no CLIP model.
    """
    folder = local_folder(path)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if not isinstance(config, dict) or config.get("model_type") != "clip":
        raise RcdeployError(f"{folder} holds no CLIP model: its config.json is missing or of another kind", fix=FOLDER)
    return folder


class ClipScore:
    """A CLIP model from a folder on this machine."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Raises RcdeployError when `folder` holds no CLIP model in .safetensors. Its own code is never run."""
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.model = CLIPModel.from_pretrained(folder, use_safetensors=True, **local).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        except Exception as error:  # tokenizers' Rust side and the many classes raise whatever they like
            raise RcdeployError(
                f"{folder} holds no CLIP model: {error}",
                fix=FOLDER,
            ) from error
        self.mean, self.std = normalization(folder)
        self.device = torch.device(device)
        self.model.to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str], batch_size: int = 16) -> Tensor:
        """images [n, 3, h, w] in [0, 1] and their n prompts -> n cosine similarities."""
        resolution = self.model.config.vision_config.image_size
        length = self.model.config.text_config.max_position_embeddings
        similarities = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            pixels = _centre_square(images[rows].float(), resolution)
            # the model's own length: not every tokenizer's files state it
            tokens = self.tokenizer(
                list(prompts[rows]), padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(self.device)
            output = self.model(**tokens, pixel_values=((pixels - self.mean) / self.std).to(self.device))
            similarities.append(F.cosine_similarity(output.image_embeds, output.text_embeds))
        return torch.cat(similarities)


def _centre_square(images: Tensor, resolution: int) -> Tensor:
    """The shorter side resized to `resolution` pixels, the middle of the longer one."""
    h, w = images.shape[-2:]
    scale = resolution / min(h, w)
    size = [max(resolution, round(h * scale)), max(resolution, round(w * scale))]
    resized = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top = (size[0] - resolution) // 2
    left = (size[1] - resolution) // 2
    return resized[..., top : top + resolution, left : left + resolution]
