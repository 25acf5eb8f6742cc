"""BLIP's captions of the images that belong to prompts (the last filter of the paper's sec. J)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BlipForConditionalGeneration

from rcdeploy_runtime.files import read_json

from ..progress import Progress, no_progress
from .journal import Journal
from .local_models import LOADING, check_complete, loading_errors

MAX_TOKENS = 30
"""of a caption"""
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""BLIP's own, where the folder has no preprocessor_config.json"""

ImagesOf = Callable[[set[str]], Iterator[tuple[list[str], Tensor]]]
"""prompts -> (prompts, images [n, 3, h, w] in [0, 1]) of those that have an image"""


class Captioner:
    """A BLIP captioning model from a folder on this machine."""

    def __init__(self, folder: Path) -> None:
        """Raises RcdeployError when `folder` holds no BLIP captioning model in .safetensors."""
        with loading_errors(folder, "BLIP captioning model"):
            config = read_json(folder / "config.json")
            if config.get("model_type") != "blip":
                raise ValueError(f"its model_type is {config.get('model_type')!r}, not 'blip'")
            model, info = BlipForConditionalGeneration.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
            check_complete(info)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **LOADING)
            file = folder / "preprocessor_config.json"
            preprocessing = read_json(file) if file.is_file() else {}
            self.mean = torch.tensor(preprocessing.get("image_mean", IMAGE_MEAN)).view(3, 1, 1)
            self.std = torch.tensor(preprocessing.get("image_std", IMAGE_STD)).view(3, 1, 1)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.name = folder.resolve().name

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[str]:
        """images [n, 3, h, w] in [0, 1] -> n captions."""
        size = self.model.config.vision_config.image_size
        resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
        pixels = ((resized.clamp(0, 1).cpu() - self.mean) / self.std).to(self.model.device)
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=MAX_TOKENS)
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def caption_images(
    captioner: Captioner,
    source: Path,
    images_of: ImagesOf,
    prompts: Sequence[str],
    journal: Journal,
    progress: Progress = no_progress,
) -> dict[str, str]:
    """Captions the images of prompts, once: the journal keeps them.

    Args:
        captioner: the model.
        source: where the images come from; part of the journal's keys.
        images_of: reads or decodes them.
        prompts: those whose images are captioned.
        journal: earlier captions, and the new ones.
        progress: receives ("image captions", images captioned, prompts without a caption so far).

    Returns:
        The image's caption by prompt, for prompts that have an image.
    """
    keys = {prompt: _key(captioner.name, source, prompt) for prompt in prompts}
    missing = {prompt for prompt, key in keys.items() if key not in journal}
    completed = 0
    for batch, images in images_of(missing):
        for prompt, caption in zip(batch, captioner(images), strict=True):
            journal.add(keys[prompt], caption)
        completed += len(batch)
        progress("image captions", completed, len(missing))
    return {prompt: journal[key] for prompt, key in keys.items() if key in journal}


def _key(model: str, source: Path, prompt: str) -> str:
    return hashlib.sha256("\0".join([model, str(source.resolve()), prompt]).encode()).hexdigest()[:32]
