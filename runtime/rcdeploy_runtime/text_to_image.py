"""Text to image from a package: prompts -> embeddings -> denoising -> pictures. Numpy and a session; no torch.

from rcdeploy_runtime import TextToImage
model = TextToImage.load("packages/quickstart-onnx")
images, record = model.generate("a photo of a red boot on a white background", seed=7)
images[0].save("boot.png")
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import RcdeployError
from .noise_schedule import Array, NoiseSchedule, noise_generator
from .package import Package
from .samplers import Sampler, make_sampler
from .sessions import Batched, open_session
from .tokenizer import PromptTokenizer

REMEMBERED_PROMPTS = 256


@dataclass
class Step:
    """One turn of the denoising loop, as `stream` yields it.

    i of n: which visit of the UNet this was. timestep: its t. images: a preview of each picture, when asked for; in the
    last Step (`done`) the pictures themselves. record: in the last Step: seeds, steps, seconds per stage.
    """

    i: int
    n: int
    timestep: float
    images: list[Image.Image] = field(default_factory=list)
    done: bool = False
    record: dict[str, Any] = field(default_factory=dict)


class TextToImage:
    """A loaded package. It serves any number of threads: nothing in it changes while it draws, but known prompts."""

    def __init__(self, package: Package, device: str = "auto", threads: int | None = None) -> None:
        self.package = package
        manifest, facts = package.manifest, package.manifest.facts
        self.schedule = NoiseSchedule.from_config(package.json("scheduler/scheduler_config.json"))
        self.tokenizer = PromptTokenizer(package.folder / "tokenizer")
        try:
            self._shape = tuple(int(x) for x in manifest.latents["shape"])
            self._scaling = float(manifest.latents["scaling_factor"])
            self.pixels_per_latent = int(facts["pixels_per_latent"])
            self.size_multiple = int(facts["size_multiple"])
        except (KeyError, TypeError, ValueError) as error:
            raise RcdeployError(f"{package.path}: its manifest lacks {error}", fix="Export it anew.") from None

        def component(name: str, *per_batch: str) -> Batched:
            precision = facts.get("precision", {}).get(name, "fp32")
            session = open_session(package.folder / name, package.format, device, threads, precision)
            self.device = session.device
            return Batched(session, per_batch)

        self._text_encoder = component("text_encoder", "input_ids")
        self._unet = component("unet", "sample", "encoder_hidden_states")
        self._decoder = component("vae_decoder", "latent_sample")
        self._open_encoder: Callable[[], Batched] = lambda: component("vae_encoder", "sample")
        self._encoder: Batched | None = None
        self._embeds: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, package: str | Path, device: str = "auto", threads: int | None = None, verify: bool = True
    ) -> TextToImage:
        """package: a folder or .zip that `rcdeploy export` wrote. device: auto, cpu, cuda... threads: of a CPU.

        Raises RcdeployError when the package is damaged or foreign, or what it needs is not installed.
        """
        return cls(Package(package, verify=verify), device, threads)

    @property
    def height(self) -> int:
        return self._shape[1] * self.pixels_per_latent

    @property
    def width(self) -> int:
        return self._shape[2] * self.pixels_per_latent

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        callback: Callable[[Step], bool | None] | None = None,
        **settings: Any,
    ) -> tuple[list[Image.Image], dict[str, Any]]:
        """The pictures and a record of how they were made (seeds, steps, seconds). Settings: those of `stream`.

        callback: called after every step; when it returns False, drawing stops and the pictures are an empty list.
        """
        for step in self.stream(prompt, **settings):
            if step.done:
                return step.images, step.record
            if callback is not None and callback(step) is False:
                break
        return [], {"cancelled": True}

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        seed: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        batch: int = 1,
        sampler: str = "ddim",
        image: Image.Image | None = None,
        strength: float = 0.8,
        mask: Image.Image | None = None,
        preview: str | None = None,
    ) -> Iterator[Step]:
        """The denoising loop as a generator: progress and previews come out of it, leaving it cancels.

        prompt: one, or several; `batch` pictures of each. seed: picture k has seed + k, so each can be drawn again
        alone; None takes a random one (the record says which). guidance_scale: 1 or below skips the null branch and
        halves the work. height, width: in pixels. image: begin from this picture (img2img), changed by `strength` from
        0 to 1. mask: white where `image` may be redrawn (inpainting); elsewhere it stays as it is. preview: None, "rgb"
        (cheap, an eighth of the size), or "decoder". Raises RcdeployError for settings that are out of range.
        """
        started = time.perf_counter()
        prompts = [p for p in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(batch)]
        if not prompts:
            raise RcdeployError("there is nothing to draw: no prompt, or batch is 0")
        height, width = height or self.height, width or self.width
        self._check(height, width, strength, image, mask, preview)
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seeds = [seed + k for k in range(len(prompts))]
        streams = [noise_generator(s) for s in seeds]
        c, h, w = self._shape[0], height // self.pixels_per_latent, width // self.pixels_per_latent

        def noise() -> Array:
            return np.stack([s.standard_normal((c, h, w), np.float32) for s in streams])

        guided = guidance_scale > 1
        null = [negative_prompt] * len(prompts) if guided else []
        embeds = self._encode_prompts([*null, *prompts])
        seconds = {"text": time.perf_counter() - started, "unet": 0.0, "decode": 0.0}

        skip = 0 if image is None else num_inference_steps - max(1, int(num_inference_steps * strength))
        steps = make_sampler(sampler, self.schedule, num_inference_steps, noise, skip)
        fresh, x_0 = noise(), None
        if image is None:
            x = fresh * np.float32(steps.init_noise_sigma)
        else:
            x_0 = self._encode_image(image, height, width)
            x = steps.noised(x_0, fresh, 0)
        keep = None if mask is None else 1 - _as_latents(mask, h, w)

        for i, t in enumerate(steps.timesteps):
            begun = time.perf_counter()
            output = self._predict(steps.shown(x, i), t, embeds, guidance_scale if guided else None)
            x = steps.step(output, i, x).astype(np.float32, copy=False)
            if keep is not None and x_0 is not None:
                last = i + 1 == len(steps.timesteps)
                x = keep * (x_0 if last else steps.noised(x_0, fresh, i + 1)) + (1 - keep) * x
            seconds["unet"] += time.perf_counter() - begun
            yield Step(i + 1, len(steps.timesteps), float(t), self._preview(steps, preview))

        begun = time.perf_counter()
        images = self._decode(x)
        if mask is not None and image is not None:
            images = [_composed(image, drawn, mask) for drawn in images]
        seconds["decode"] = time.perf_counter() - begun
        record = {
            "prompts": prompts,
            "negative_prompt": negative_prompt,
            "seeds": seeds,
            "sampler": sampler,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
            "device": self.device,
            "seconds": {**seconds, "all": time.perf_counter() - started},
        }
        yield Step(len(steps.timesteps), len(steps.timesteps), 0.0, images, done=True, record=record)

    def _check(
        self,
        height: int,
        width: int,
        strength: float,
        image: Image.Image | None,
        mask: Image.Image | None,
        preview: str | None,
    ) -> None:
        for name, size in (("height", height), ("width", width)):
            if size < self.size_multiple or size % self.size_multiple:
                raise RcdeployError(f"{name} is {size}: this package draws multiples of {self.size_multiple} pixels")
        fixed = self.package.manifest.facts.get("static_size")
        if fixed and [height, width] != fixed:
            raise RcdeployError(
                f"this package was exported for {fixed[1]} x {fixed[0]} pixels only",
                fix="Export it without --static for any size.",
            )
        if not 0 < strength <= 1:
            raise RcdeployError(f"strength is {strength}: it lies between 0 (nothing changes) and 1 (all of it)")
        if mask is not None and image is None:
            raise RcdeployError("mask says which part of image to redraw, but there is no image")
        if preview not in (None, "rgb", "decoder"):
            raise RcdeployError(f"preview is {preview!r}: None, 'rgb' or 'decoder'")

    def _encode_prompts(self, prompts: Sequence[str]) -> Array:
        """n prompts -> embeddings [n, context, width]; those met before are remembered."""
        with self._lock:
            known = {p: self._embeds[p] for p in prompts if p in self._embeds}
        new = [p for p in dict.fromkeys(prompts) if p not in known]
        if new:
            # one by one: what a prompt becomes then does not depend on those beside it, to the last bit
            known |= {p: self._text_encoder(input_ids=self.tokenizer([p]))[0] for p in new}
            with self._lock:
                self._embeds.update((p, known[p]) for p in new)
                while len(self._embeds) > REMEMBERED_PROMPTS:
                    self._embeds.popitem(last=False)
        return np.stack([known[p] for p in prompts])

    def _predict(self, shown: Array, t: float, embeds: Array, guidance_scale: float | None) -> Array:
        """The UNet's answer, guided when there is a scale (embeds then hold the null rows first)."""
        timestep = np.asarray(round(float(t)), np.int64)  # the graph takes whole ones; linspace alone makes others
        sample = shown if guidance_scale is None else np.concatenate([shown, shown])
        output = self._unet(sample=sample, timestep=timestep, encoder_hidden_states=embeds)
        if guidance_scale is None:
            return output
        null, conditional = np.split(output, 2)
        guided: Array = null + np.float32(guidance_scale) * (conditional - null)
        return guided

    def _decode(self, latents: Array) -> list[Image.Image]:
        """One at a time: a decoder needs more memory than all the rest."""
        images = []
        for row in latents / np.float32(self._scaling):
            picture = self._decoder(latent_sample=row[None])[0].transpose(1, 2, 0)
            images.append(Image.fromarray(((picture / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)))
        return images

    def _encode_image(self, image: Image.Image, height: int, width: int) -> Array:
        """A picture -> latents [1, c, h, w], scaled: the mean of what the VAE says, nothing drawn at random."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self._open_encoder()
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), np.float32)
        parameters = self._encoder(sample=(pixels / 127.5 - 1).transpose(2, 0, 1)[None])
        return parameters[:, : self._shape[0]] * np.float32(self._scaling)

    def _preview(self, sampler: Sampler, kind: str | None) -> list[Image.Image]:
        if kind is None or sampler.x_0 is None:
            return []
        if kind == "decoder":
            return self._decode(sampler.x_0.astype(np.float32))
        matrix = np.asarray(self.package.manifest.facts.get("latent_to_rgb", []), np.float32)
        if matrix.shape != (self._shape[0] + 1, 3):
            raise RcdeployError('this package has no latent_to_rgb: use preview="decoder"')
        pixels = np.einsum("nchw,cr->nhwr", sampler.x_0, matrix[:-1]) + matrix[-1]
        return [Image.fromarray((p.clip(0, 1) * 255).round().astype(np.uint8)) for p in pixels]


def _as_latents(mask: Image.Image, h: int, w: int) -> Array:
    """1 where the picture is redrawn; a latent that touches the white is."""
    small = np.asarray(mask.convert("L").resize((w, h), Image.Resampling.BOX), np.float32)
    return (small > 0).astype(np.float32)[None, None]


def _composed(image: Image.Image, drawn: Image.Image, mask: Image.Image) -> Image.Image:
    """What was drawn where the mask is white, the picture itself elsewhere."""
    original = image.convert("RGB").resize(drawn.size, Image.Resampling.LANCZOS)
    return Image.composite(drawn, original, mask.convert("L").resize(drawn.size))
