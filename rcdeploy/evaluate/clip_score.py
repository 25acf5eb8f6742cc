"""CLIP score: how near a picture is to its text, by a CLIP model in transformers' layout (the paper: ViT-g/14)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json


class ClipScore:
    """A CLIP model from a folder on this machine."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Raises RcdeployError when `folder` holds no CLIP model in .safetensors."""
        try:
            self.model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise RcdeployError(
                f"{folder} holds no CLIP model: {error}",
                fix="Give a folder with config.json, model.safetensors and the tokenizer, as transformers writes it.",
            ) from error
        given = folder / "preprocessor_config.json"
        pixels = read_json(given) if given.is_file() else {}
        # CLIP's own, where the folder does not say
        self.mean = torch.tensor(pixels.get("image_mean", [0.48145466, 0.4578275, 0.40821073])).view(3, 1, 1)
        self.std = torch.tensor(pixels.get("image_std", [0.26862954, 0.26130258, 0.27577711])).view(3, 1, 1)
        self.device = torch.device(device)
        self.model.to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str], batch_size: int = 16) -> Tensor:
        """images [n, 3, h, w] in [0, 1] and their n prompts -> n cosine similarities."""
        edge = self.model.config.vision_config.image_size
        length = self.model.config.text_config.max_position_embeddings
        found = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            pixels = _square(images[rows].float(), edge)
            # the model's own length: not every tokenizer's files say it
            tokens = self.tokenizer(
                list(prompts[rows]), padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(self.device)
            said = self.model(**tokens, pixel_values=((pixels - self.mean) / self.std).to(self.device))
            found.append(F.cosine_similarity(said.image_embeds, said.text_embeds))
        return torch.cat(found)


def _square(images: Tensor, edge: int) -> Tensor:
    """The shorter side to `edge` pixels, the middle of the longer one."""
    h, w = images.shape[-2:]
    scale = edge / min(h, w)
    size = [max(edge, round(h * scale)), max(edge, round(w * scale))]
    resized = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (size[0] - edge) // 2, (size[1] - edge) // 2
    return resized[..., top : top + edge, left : left + edge]
