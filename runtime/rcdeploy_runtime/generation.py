"""The arguments of a generation, checked before anything is computed, and what a generation yields."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .errors import RcdeployError
from .images import ImageLike, as_image
from .limits import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGE_SIDE,
    MAX_IMAGES_PER_CALL,
    MAX_MEMORY_GB,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_TRAIN_TIMESTEPS,
    MIN_MEMORY_GB,
    MIN_SEED,
)
from .noise import GENERATORS
from .samplers import SAMPLERS
from .sampling_defaults import SamplingDefaults
from .tiles import MIN_TILE

PREVIEWS = (None, "rgb", "decoder")


@dataclass(frozen=True)
class Step:
    """One denoising step, as `stream` yields it.

    completed, total: UNet calls. timestep: t of this one. previews: images of x_0 as predicted here.
    """

    completed: int
    total: int
    timestep: float
    previews: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Result:
    """The last that `stream` yields. images: one for each prompt and seed. record: seeds, steps, seconds per stage."""

    images: list[Image.Image]
    record: dict[str, Any] = field(default_factory=dict)


class Cancelled(Exception):
    """The callback of `generate` returned False: there are no images. last_step: the step after which it stopped."""

    def __init__(self, last_step: Step) -> None:
        super().__init__(f"cancelled after step {last_step.completed} of {last_step.total}")
        self.last_step = last_step

    def __reduce__(self) -> tuple[type[Cancelled], tuple[Step]]:
        return type(self), (self.last_step,)


@dataclass(frozen=True)
class ImageSize:
    """Sizes in pixels that a package generates.

    height, width: its own. multiple: others are multiples of it. pixels_per_latent: along one side. fixed: whether its
    own size is the only one.
    """

    height: int
    width: int
    multiple: int
    pixels_per_latent: int
    fixed: bool


@dataclass(frozen=True)
class GenerationSettings:
    """The checked arguments of `TextToImage.stream`. prompts, seeds: one of each for every image."""

    prompts: tuple[str, ...]
    negative_prompt: str
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    sampler: str
    image: Image.Image | None
    strength: float
    mask: Image.Image | None
    preview: str | None
    generator: str
    eta: float
    decode_tile: int | None

    @property
    def guided(self) -> bool:
        """Whether the null condition is predicted too (classifier-free guidance)."""
        return self.guidance_scale > 1

    @property
    def skipped_steps(self) -> int:
        """Steps that img2img leaves out at the start."""
        if self.image is None:
            return 0
        return self.num_inference_steps - max(1, int(self.num_inference_steps * self.strength))

    def as_dict(self) -> dict[str, Any]:
        """What makes the image again, without the images and the mask that it began from."""
        left_out = ("image", "strength", "mask", "preview")
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name not in left_out
        }


def check_settings(
    size: ImageSize,
    defaults: SamplingDefaults,
    *,
    prompt: str | Sequence[str],
    negative_prompt: str,
    seed: int | Sequence[int] | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    height: int | None,
    width: int | None,
    batch: int,
    sampler: str | None,
    image: ImageLike | None,
    strength: float,
    mask: ImageLike | None,
    preview: str | None,
    generator: str = "philox",
    eta: float = 0.0,
    decode_tile: int | None = None,
) -> GenerationSettings:
    """Raises RcdeployError for the first argument that has a wrong type or lies out of range.

    defaults: the package's own sampling, where an argument is None.
    A number of steps is compared with the noise schedule later, when the sampler is made.
    """
    batch = whole_number("batch", batch, 1, MAX_IMAGES_PER_CALL)
    prompts = [p for p in _prompts(prompt) for _ in range(batch)]
    if not 1 <= len(prompts) <= MAX_IMAGES_PER_CALL:
        raise RcdeployError(
            f"prompt and batch ask for {len(prompts):,} images; 1 to {MAX_IMAGES_PER_CALL:,} are allowed in one call",
            fix="Call generate several times.",
        )
    sampling = defaults.override(sampler, num_inference_steps, guidance_scale)
    sampler = sampling.sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise RcdeployError(f"sampler is {sampler!r}, which is unknown", fix=f"Use one of: {', '.join(SAMPLERS)}.")
    if preview not in PREVIEWS:
        raise RcdeployError(f"preview is {preview!r}; None, 'rgb' and 'decoder' are allowed")
    if mask is not None and image is None:
        raise RcdeployError("mask says which part of image to generate anew, but there is no image")
    if generator not in GENERATORS:
        raise RcdeployError(f"generator is {_shortened(generator)}; 'philox' and 'torch' are allowed")
    if generator == "torch" and mask is not None:
        raise RcdeployError(
            "generator is 'torch', whose seeds give diffusers' own images, and with a mask they would not: inpainting "
            "takes the mask to latents and mixes them in another way here",
            fix="Leave generator out.",
        )
    return GenerationSettings(
        prompts=tuple(prompts),
        negative_prompt=_prompt("negative_prompt", negative_prompt),
        seeds=_seeds(seed, len(prompts)),
        num_inference_steps=whole_number("num_inference_steps", sampling.num_inference_steps, 1, MAX_TRAIN_TIMESTEPS),
        guidance_scale=number("guidance_scale", sampling.guidance_scale, 0, MAX_GUIDANCE_SCALE),
        **_checked_size(size, height, width),
        sampler=sampler,
        image=None if image is None else as_image("image", image),
        strength=number("strength", strength, 0, 1, above=True),
        mask=None if mask is None else as_image("mask", mask),
        preview=preview,
        generator=generator,
        eta=number("eta", eta, 0, 1),
        decode_tile=None if decode_tile is None else _checked_tile(size, decode_tile),
    )


def check_memory(memory_gb: float, package_format: str) -> None:
    """Raises RcdeployError for a limit on memory that is no number in range, or that this format does not know."""
    number("memory_gb", memory_gb, MIN_MEMORY_GB, MAX_MEMORY_GB)
    if package_format != "onnx":
        raise RcdeployError(f"memory_gb does not limit packages of the format {package_format}, only those of onnx")


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """Raises RcdeployError when `value` is no whole number (numpy's are), or not in low..high."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise RcdeployError(f"{name} is {_shortened(value)}; it must be a whole number from {low:,} to {high:,}")
    result = operator.index(value)
    if not low <= result <= high:
        raise RcdeployError(f"{name} is {result}; {low:,} to {high:,} are allowed")
    return result


def number(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """Raises RcdeployError when `value` is no number or not in low..high. above: `low` itself is refused too."""
    allowed = f"a number {'above' if above else 'from'} {low:g} {'and up ' if above else ''}to {high:.10g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RcdeployError(f"{name} is {_shortened(value)}; it must be {allowed}")
    result = float(value)
    if not low <= result <= high or (above and result == low):  # NaN too
        raise RcdeployError(f"{name} is {result:g}; it must be {allowed}")
    return result


def _seeds(seed: object, count: int) -> tuple[int, ...]:
    """One for each of `count` images: those of a list, or numbers that count up from one seed."""
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes, bytearray, memoryview)):
        if len(seed) != count:
            raise RcdeployError(f"seed has {len(seed):,} numbers for {count:,} images; it must have one for each")
        return tuple(whole_number(f"seed[{k}]", value, MIN_SEED, MAX_SEED) for k, value in enumerate(seed))
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    first = whole_number("seed", seed, MIN_SEED, MAX_SEED)
    return tuple(first + k for k in range(count))


def _prompts(prompt: object) -> list[str]:
    if isinstance(prompt, str):
        return [_prompt("prompt", prompt)]
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray, memoryview)):
        if not 1 <= len(prompt) <= MAX_IMAGES_PER_CALL:
            raise RcdeployError(
                f"prompt has {len(prompt):,} texts; 1 to {MAX_IMAGES_PER_CALL:,} are allowed in one call"
            )
        return [_prompt(f"prompt[{i}]", p) for i, p in enumerate(prompt)]
    raise RcdeployError(f"prompt is {_shortened(prompt)}; it must be a string or a list of strings")


def _prompt(name: str, prompt: object) -> str:
    if not isinstance(prompt, str):
        raise RcdeployError(f"{name} is {_shortened(prompt)}; it must be a string")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RcdeployError(
            f"{name} has {len(prompt):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are allowed",
            fix="Shorten it: a text encoder reads some hundred characters.",
        )
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RcdeployError(f"{name} is no text that can be encoded: {error.reason}") from None
    return str(prompt)


def _checked_size(size: ImageSize, height: int | None, width: int | None) -> dict[str, int]:
    multiple = size.multiple
    sizes = {}
    for name, value, own in (("height", height, size.height), ("width", width, size.width)):
        pixels = whole_number(name, own if value is None else value, 1, max(MAX_IMAGE_SIDE, own))
        if pixels % multiple:
            nearest = max(multiple, round(pixels / multiple) * multiple)
            raise RcdeployError(
                f"{name} is {pixels}; this package generates multiples of {multiple} pixels", fix=f"Use {nearest}."
            )
        sizes[name] = pixels
    if size.fixed and (sizes["height"], sizes["width"]) != (size.height, size.width):
        raise RcdeployError(
            f"this package was exported for {size.width} x {size.height} pixels only",
            fix="Export it without --static for any size.",
        )
    return sizes


def _checked_tile(size: ImageSize, pixels: object) -> int:
    if size.fixed:
        raise RcdeployError(
            "decode_tile is for packages of any size, and this one was exported for one",
            fix="Leave it out, or export the package without --static.",
        )
    return whole_number("decode_tile", pixels, MIN_TILE * size.pixels_per_latent, MAX_IMAGE_SIDE)


def _shortened(value: object) -> str:
    """A value and its type, for messages."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
