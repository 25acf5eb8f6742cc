"""Pictures for a page: teacher, student and package from the same noise, and the run's own grids over its steps."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from rcdeploy_runtime.text_to_image import TextToImage

from ..diffusion_model import LatentDiffusionModel
from ..plots import read_grid
from ..sampling import runtime_noise, sample_images

FRAMES = 8
"""steps of a training shown at the most: the page stays small enough to send"""
LOSSLESS_EDGE, LARGEST_EDGE = 128, 512
"""in pixels: smaller pictures lose colour where they are enlarged, larger ones are shrunk"""


def side_by_side(
    models: Mapping[str, LatentDiffusionModel | TextToImage],
    prompts: Sequence[str],
    seed: int,
    size: tuple[int, int],
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Each prompt drawn by each model (teacher, student, package), picture k from the noise of seed + k.

    size: (height, width) in pixels. settings: num_inference_steps, guidance_scale. Returns {"cards": [{"prompt",
    "seed", "images": {model: data URI}}], "difference"}: the largest one between student and package in grey levels, of
    255; None when one of them is not there.
    """
    cards: list[dict[str, Any]] = []
    apart: list[int] = []
    for k, prompt in enumerate(prompts):
        drawn: dict[str, Image.Image] = {}
        for name, model in models.items():
            progress(len(cards) * len(models) + len(drawn), len(prompts) * len(models))
            drawn[name] = draw(model, prompt, seed + k, size, **settings)
        if {"student", "package"} <= set(drawn):
            extrema = ImageChops.difference(drawn["student"], drawn["package"]).getextrema()
            apart += [int(highest) for _, highest in extrema]  # type: ignore[misc]
        images = {name: data_uri(image) for name, image in drawn.items()}
        cards.append({"prompt": prompt, "seed": seed + k, "images": images})
    progress(len(prompts) * len(models), len(prompts) * len(models))
    return {"cards": cards, "difference": max(apart, default=None)}


def draw(
    model: LatentDiffusionModel | TextToImage,
    prompt: str,
    seed: int,
    size: tuple[int, int],
    *,
    num_inference_steps: int,
    guidance_scale: float,
) -> Image.Image:
    """One image, from the start noise that the runtime draws for the seed."""
    height, width = size
    if isinstance(model, TextToImage):
        given: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        return model.generate(prompt, seed=seed, height=height, width=width, **given)[0][0]
    (picture,) = sample_images(
        model,
        [prompt],
        runtime_noise(model, [seed], size),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    return Image.fromarray((picture.movedim(0, -1).numpy() * 255).round().astype(np.uint8))


def frames(samples: Path) -> dict[str, Any] | None:
    """The run's grids of pictures over its steps: {"steps", "teacher": [URI], "student": [[URI] a step]}.

    At most FRAMES steps, evenly and with the last one; grids that show other numbers of prompts are left out.
    """
    files = sorted(samples.glob("step-*.png"))
    if not files:
        return None
    last = read_grid(files[-1])
    found = {int(file.stem.removeprefix("step-")): read_grid(file) for file in _evenly(files)}
    same = {step: rows for step, rows in found.items() if len(rows) == 2 and len(rows[1]) == len(last[1])}
    return {
        "steps": list(same),
        "teacher": [data_uri(image) for image in last[0]],
        "student": [[data_uri(image, lossless=False) for image in rows[1]] for rows in same.values()],
    }


def _evenly(files: Sequence[Path]) -> list[Path]:
    count = min(FRAMES, len(files))
    return [files[(i + 1) * len(files) // count - 1] for i in range(count)]


def data_uri(image: Image.Image, *, lossless: bool = True) -> str:
    """A WebP to stand in a page; lossless below LOSSLESS_EDGE unless told otherwise."""
    image = image.convert("RGB")
    image.thumbnail((LARGEST_EDGE, LARGEST_EDGE))
    page = io.BytesIO()
    image.save(page, "WEBP", quality=85, method=6, lossless=lossless and max(image.size) <= LOSSLESS_EDGE)
    return "data:image/webp;base64," + base64.b64encode(page.getvalue()).decode()
