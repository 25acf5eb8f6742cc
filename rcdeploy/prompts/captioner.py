"""What BLIP sees in the pictures that the teacher drew of captions (the last look of the paper's sec. J)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BlipForConditionalGeneration

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

from ..diffusion_model import LatentDiffusionModel
from ..latent_cache import LatentCache
from ..real_images import captioned_images
from .journal import Journal, Progress

BATCH = 8
LONGEST = 30
"""tokens of a caption"""


class Captioner:
    """A BLIP model from a folder on this machine."""

    def __init__(self, folder: Path) -> None:
        """Raises RcdeployError when `folder` holds no BLIP captioning model in .safetensors."""
        try:
            config = read_json(folder / "config.json")
            if config.get("model_type") != "blip":
                raise ValueError(f"its model_type is {config.get('model_type')!r}, not 'blip'")
            model = BlipForConditionalGeneration.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RcdeployError) as error:
            raise RcdeployError(
                f"{folder} holds no BLIP captioning model: {error}",
                fix="Give a folder with config.json, model.safetensors and the tokenizer, as transformers writes it.",
            ) from error
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.name = folder.resolve().name
        given = folder / "preprocessor_config.json"
        pixels = read_json(given) if given.is_file() else {}
        # BLIP's own, where the folder does not say
        self.mean = torch.tensor(pixels.get("image_mean", [0.48145466, 0.4578275, 0.40821073])).view(3, 1, 1)
        self.std = torch.tensor(pixels.get("image_std", [0.26862954, 0.26130258, 0.27577711])).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[str]:
        """images [n, 3, h, w] in [0, 1] -> n captions."""
        edge = self.model.config.vision_config.image_size
        resized = F.interpolate(images.float(), (edge, edge), mode="bicubic", antialias=True, align_corners=False)
        pixels = ((resized.clamp(0, 1).cpu() - self.mean) / self.std).to(self.model.device)
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=LONGEST)
        said = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in said]


def drawn_by_teacher(cache: Path, wanted: set[str]) -> Iterator[tuple[list[str], Tensor]]:
    """(captions, pictures [n, 3, h, w] in [0, 1]) of the wanted captions in a latent cache, decoded by its teacher."""
    opened = LatentCache.open(cache)
    rows = [i for i, prompt in enumerate(opened.prompts) if prompt in wanted]
    recorded = opened.manifest.recipe["teacher"]
    teacher = LatentDiffusionModel(recorded["path"], revision=recorded["revision"])
    if teacher.revision != opened.manifest.teacher["revision"]:
        raise RcdeployError(f"the teacher {teacher.folder} is not the one that {cache} was made by")
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        yield opened.prompts.take(part), teacher.decode(opened.latents(part).to(teacher.device), BATCH)


def in_folder(folder: Path, wanted: set[str]) -> Iterator[tuple[list[str], Tensor]]:
    """The same of a folder of pictures with metadata.csv, one at a time: their sizes may differ."""
    for file, caption in captioned_images(folder):
        if caption in wanted:
            with Image.open(file) as image:
                pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
            yield [caption], pixels.permute(2, 0, 1)[None] / 255


def look(
    captioner: Captioner, source: Path, captions: list[str], journal: Journal, progress: Progress | None = None
) -> dict[str, str]:
    """Caption -> what the captioner sees in its picture, for those that `source` has a picture of.

    source: a latent cache, or a folder of pictures with metadata.csv. What was seen before is in the journal.
    """
    of_cache = (source / "index.json").is_file()
    keys = {caption: _key(captioner.name, source, caption) for caption in captions}
    missing = {caption for caption, key in keys.items() if key not in journal}
    done = 0
    for part, images in (drawn_by_teacher if of_cache else in_folder)(source, missing):
        for caption, seen in zip(part, captioner(images), strict=True):
            journal.add(keys[caption], seen)
        done += len(part)
        if progress:
            progress(done, len(missing))
    return {caption: journal[key] for caption, key in keys.items() if key in journal}


def _key(model: str, source: Path, caption: str) -> str:
    return hashlib.sha256("\0".join([model, str(source.resolve()), caption]).encode()).hexdigest()[:32]
