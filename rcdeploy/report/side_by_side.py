"""Images for a page: teacher, student and package from the same noise, and the run's own grids over its steps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from rcdeploy_runtime.sampling_defaults import SamplingDefaults
from rcdeploy_runtime.text_to_image import TextToImage

from ..diffusion_model import LatentDiffusionModel
from ..plots import read_grid
from ..progress import Progress
from ..sampling import runtime_noise, sample_images

MAX_FRAMES = 8
"""steps of a training on the page, which stays small enough to send"""
MAX_LOSSLESS_SIZE = 128
MAX_SIZE = 512
"""in pixels: compression would show in smaller images, which are enlarged; larger ones are shrunk"""


def side_by_side(
    models: Mapping[str, LatentDiffusionModel | TextToImage],
    prompts: Sequence[str],
    seed: int,
    image_size: tuple[int, int],
    samplings: Mapping[str, SamplingDefaults],
    progress: Progress,
) -> dict[str, Any]:
    """Generate an image of each prompt with each model (teacher, student, package), image k from the seed + k.

    Args:
        image_size: (height, width) in pixels.
        samplings: sampler, steps and guidance, by model.

    Returns:
        {"cards": [{"prompt", "seed", "images": {model: data URI}}], "difference"}: the largest one between student and
        package in grey levels, of 255; None when one of them is not there.
    """
    cards: list[dict[str, Any]] = []
    differences: list[int] = []
    total = len(prompts) * len(models)
    for k, prompt in enumerate(prompts):
        images: dict[str, Image.Image] = {}
        for name, model in models.items():
            progress("images", len(cards) * len(models) + len(images), total)
            images[name] = generate_image(model, prompt, seed + k, image_size, samplings[name])
        if {"student", "package"} <= set(images):
            extrema = ImageChops.difference(images["student"], images["package"]).getextrema()
            differences += [int(highest) for _, highest in extrema]  # type: ignore[misc]
        uris = {name: data_uri(image) for name, image in images.items()}
        cards.append({"prompt": prompt, "seed": seed + k, "images": uris})
    progress("images", total, total)
    return {"cards": cards, "difference": max(differences, default=None)}


def generate_image(
    model: LatentDiffusionModel | TextToImage,
    prompt: str,
    seed: int,
    image_size: tuple[int, int],
    sampling: SamplingDefaults,
) -> Image.Image:
    """One image, from the start noise that the runtime uses for the seed."""
    height, width = image_size
    if isinstance(model, TextToImage):
        images, _ = model.generate(prompt, seed=seed, height=height, width=width, **vars(sampling))
        return images[0]
    noise = runtime_noise(model, [seed], image_size)
    (image,) = sample_images(model, [prompt], noise, seeds=[seed], **vars(sampling))
    return Image.fromarray((image.movedim(0, -1).numpy() * 255).round().astype(np.uint8))


def training_frames(samples: Path) -> dict[str, Any] | None:
    """The run's grids of images over its steps: {"steps", "teacher": [URI], "student": [[URI] a step]}.

    At most MAX_FRAMES steps, evenly spaced and with the last one; grids of other numbers of prompts are left out.
    """
    files = sorted(samples.glob("step-*.png"))
    if not files:
        return None
    last = read_grid(files[-1])
    grids = {int(file.stem.removeprefix("step-")): read_grid(file) for file in _evenly(files)}
    grids = {step: rows for step, rows in grids.items() if len(rows) == 2 and len(rows[1]) == len(last[1])}
    return {
        "steps": list(grids),
        "teacher": [data_uri(image) for image in last[0]],
        "student": [[data_uri(image, lossless=False) for image in rows[1]] for rows in grids.values()],
    }


def _evenly(files: Sequence[Path]) -> list[Path]:
    count = min(MAX_FRAMES, len(files))
    return [files[(i + 1) * len(files) // count - 1] for i in range(count)]


def data_uri(image: Image.Image, *, lossless: bool = True) -> str:
    """A WebP for a page; lossless up to MAX_LOSSLESS_SIZE unless that is turned off."""
    image = image.convert("RGB")
    image.thumbnail((MAX_SIZE, MAX_SIZE))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=85, method=6, lossless=lossless and max(image.size) <= MAX_LOSSLESS_SIZE)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()
