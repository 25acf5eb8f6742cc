"""Text to image from a package: prompts -> embeddings -> denoising -> images. Numpy and a session; no torch.

from rcdeploy_runtime import TextToImage
model = TextToImage.load("examples/students/fashion")
images, record = model.generate("a photo of a red boot on a white background", seed=7)
images[0].save("boot.png")
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import images as image_arrays
from .errors import RcdeployError
from .generation import Cancelled, GenerationSettings, Result, Step, check_settings
from .images import ImageLike
from .inpainting import restoring
from .kept_tuning import Tuning, compiled_folder, kept_tuning
from .networks import Networks
from .noise import Noise, seeded_noise
from .noise_schedule import Array, NoiseSchedule
from .package import Package
from .sampler_base import Sampler
from .samplers import make_sampler
from .session_options import SessionOptions


class TextToImage:
    """A loaded package. It serves any number of threads: nothing in it changes but the embeddings of known prompts.

    Attributes:
        package: its files and facts.
        networks: its tokenizer, text encoder, UNet and VAE.
        schedule: the noise schedule.
        device: where the networks run.
        tuning: what `rcdeploy tune` has kept and is in use; None where nothing is, or an option was given.
        height, width: of its images, in pixels.
    """

    def __init__(self, package: Package, options: SessionOptions | None = None, *, tuned: bool = True) -> None:
        """options, tuned: as in `load`."""
        self.package = package
        self.schedule = NoiseSchedule.from_config(
            package.json("scheduler/scheduler_config.json"), f"{package.path}: scheduler/scheduler_config.json"
        )
        options = options or SessionOptions()
        self.tuning: Tuning | None = kept_tuning(package) if tuned and options == SessionOptions() else None
        self.networks = self._open(options)
        self.pixels_per_latent = package.facts.pixels_per_latent
        self.size_multiple = package.facts.size_multiple
        self.height, self.width = package.image_size.height, package.image_size.width
        self.device = self.networks.device

    @classmethod
    def load(
        cls,
        package: str | Path,
        device: str = "auto",
        threads: int | None = None,
        verify: bool = True,
        digest: str | None = None,
        memory_gb: float | None = None,
        *,
        backend: str | None = None,
        precision: str | None = None,
        tuned: bool = True,
    ) -> TextToImage:
        """Load a package.

        Args:
            package: a folder or .zip that `rcdeploy export` wrote.
            device: auto, cpu, cuda ...
            threads: of a CPU; None takes all.
            verify: compare every file with its digest.
            digest: "sha256:...", which `rcdeploy package digest` prints: load that very package and no other.
            memory_gb: most memory that each network may take beside its weights, for packages from strangers; of
                ONNX Runtime on a CPU only. None sets no limit.
            backend: onnxruntime, openvino or tensorrt; None takes the package's own. OpenVINO executes ONNX too.
            precision: that OpenVINO computes in: fp32, bf16, fp16; None takes that of the package.
            tuned: use what `rcdeploy tune` has kept for this package on this machine, where neither device, threads,
                memory_gb, backend nor precision is given. One of another machine or of other versions is a warning.

        Raises:
            RcdeployError: the package is damaged, foreign or of another digest, or what it needs is not installed.
        """
        options = SessionOptions(device, threads, memory_gb, backend, precision)
        return cls(Package(package, verify=verify, digest=digest), options, tuned=tuned)

    def _open(self, options: SessionOptions) -> Networks:
        """The networks, tuned; as `options` say where they are not, or cannot be loaded so any more."""
        if self.tuning is not None:
            try:
                return Networks(self.package, self.tuning.options, compiled_folder(self.tuning))
            except RcdeployError as error:
                warnings.warn(f"{self.package.path}: its tuning is ignored: {error.problem}", stacklevel=4)
                self.tuning = None
        return Networks(self.package, options)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        callback: Callable[[Step], bool | None] | None = None,
        negative_prompt: str = "",
        seed: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch: int = 1,
        sampler: str | None = None,
        image: ImageLike | None = None,
        strength: float = 0.8,
        mask: ImageLike | None = None,
        preview: str | None = None,
        generator: str = "philox",
        eta: float = 0.0,
        decode_tile: int | None = None,
    ) -> tuple[list[Image.Image], dict[str, Any]]:
        """Generate images, and a record of how they were made: seeds, steps, seconds. The arguments are `stream`'s.

        Args:
            callback: called after every step; when it returns False, the generation is cancelled.

        Raises:
            RcdeployError: an argument is out of range or of a wrong type; nothing was computed.
            Cancelled: the callback returned False.
        """
        if callback is not None and not callable(callback):
            raise RcdeployError(f"callback is {callback!r}; it must be a function that takes a Step, or None")
        events = self.stream(
            prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            batch=batch,
            sampler=sampler,
            image=image,
            strength=strength,
            mask=mask,
            preview=preview,
            generator=generator,
            eta=eta,
            decode_tile=decode_tile,
        )
        for event in events:
            if isinstance(event, Result):
                return event.images, event.record
            if callback is not None and callback(event) is False:
                raise Cancelled(event)
        raise AssertionError("stream ends with a Result")

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        seed: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch: int = 1,
        sampler: str | None = None,
        image: ImageLike | None = None,
        strength: float = 0.8,
        mask: ImageLike | None = None,
        preview: str | None = None,
        generator: str = "philox",
        eta: float = 0.0,
        decode_tile: int | None = None,
    ) -> Iterator[Step | Result]:
        """The denoising loop as a generator: a Step after every UNet call, then one Result. Leaving the loop cancels.

        Args:
            prompt: one text or several; `batch` images of each.
            negative_prompt: takes the place of the null condition.
            seed: image k has seed + k, so that each can be generated again alone; a list has one for each image; None
                takes a random one.
            num_inference_steps: 1 to what the noise schedule has; None takes the package's own, as for the next two.
            guidance_scale: classifier-free guidance; 1 or below skips the null branch and halves the work. A model that
                takes the scale as an input never has that branch, and knows no negative prompt.
            height, width: in pixels; None takes the package's own.
            sampler: ddim, pndm, euler, euler_ancestral, heun, dpm++, dpm++_sde, unipc, lcm or tcd.
            image: begin from it (img2img): a PIL image, or an array [h, w, 3] of uint8 or of floats from 0 to 1.
            strength: how much of `image` changes, above 0 and up to 1.
            mask: white where `image` is generated anew (inpainting); elsewhere it stays as it is.
            preview: None, "rgb" (cheap, one pixel a latent) or "decoder".
            generator: "torch" draws what torch.Generator("cpu").manual_seed(seed) draws, so that a seed gives the image
                that diffusers gives; "philox" is numpy's.
            eta: how much of the noise of ddim and tcd is fresh at each step, 0 to 1.
            decode_tile: decodes in overlapping tiles of so many pixels along a side (128 or more, for SD's VAE): less
                memory, more time, and an image that differs a little.

        Raises:
            RcdeployError: an argument is out of range or of a wrong type (at the call; nothing was computed), or a
                network gave NaN.
        """
        settings = check_settings(
            self.package.image_size,
            self.package.sampling,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            batch=batch,
            sampler=sampler,
            image=image,
            strength=strength,
            mask=mask,
            preview=preview,
            generator=generator,
            eta=eta,
            decode_tile=decode_tile,
        )
        if preview == "rgb":
            self._latent_to_rgb()
        noise = self._noise(settings)
        if negative_prompt and self.networks.guidance_width:
            warnings.warn(
                "this model takes the guidance scale as an input: its negative prompt is left out", stacklevel=2
            )
        if remark := self.package.sampling.remark(settings.num_inference_steps):
            warnings.warn(remark, stacklevel=2)
        made = make_sampler(
            settings.sampler, self.schedule, settings.num_inference_steps, noise, settings.skipped_steps, settings.eta
        )
        return self._run(settings, made, noise)

    def _run(self, settings: GenerationSettings, sampler: Sampler, noise: Noise) -> Iterator[Step | Result]:
        """The five stages: noise, prompts, latents, denoising, decoding."""
        started = time.perf_counter()
        needs_null = settings.guided and not self.networks.guidance_width
        negative = [settings.negative_prompt] * len(settings.prompts) if needs_null else []
        condition = self.networks.text.condition(settings.prompts, negative)
        seconds = {"text": time.perf_counter() - started, "unet": 0.0, "decode": 0.0}

        x_0 = self._encode_image(settings, noise)
        first_noise = noise()
        latents = self._first_latents(sampler, first_noise, x_0)
        inpainting = restoring(settings.mask, x_0, sampler, first_noise)

        guidance_scale = settings.guidance_scale if settings.guided else None
        total = len(sampler.timesteps)
        for i, t in enumerate(sampler.timesteps):
            step_started = time.perf_counter()
            noise_pred = self.networks.predict(sampler.scale_model_input(latents, i), t, condition, guidance_scale)
            latents = inpainting(sampler.step(noise_pred, i, latents).astype(np.float32, copy=False), i)
            seconds["unet"] += time.perf_counter() - step_started
            yield Step(i + 1, total, float(t), tuple(self._previews(sampler, settings)))

        decoding_started = time.perf_counter()
        images = self._decode(latents, settings)
        if settings.image is not None and settings.mask is not None:
            images = [image_arrays.paste(settings.image, generated, settings.mask) for generated in images]
        seconds["decode"] = time.perf_counter() - decoding_started
        yield Result(images, self._record(settings, {**seconds, "all": time.perf_counter() - started}))

    def _noise(self, settings: GenerationSettings) -> Noise:
        """A function that draws noise [n, c, h, w], each image's from the generator of its seed."""
        channels = self.package.latents.shape[0]
        shape = (channels, settings.height // self.pixels_per_latent, settings.width // self.pixels_per_latent)
        return seeded_noise(settings.seeds, shape, settings.generator)

    def _encode_image(self, settings: GenerationSettings, noise: Noise) -> Array | None:
        """The latents that img2img begins from. With torch's noise they are sampled, as diffusers does, before x_T."""
        if settings.image is None:
            return None
        posterior_noise = noise if settings.generator == "torch" else None
        return self.networks.encode_image(settings.image, settings.height, settings.width, posterior_noise)

    def _first_latents(self, sampler: Sampler, noise: Array, x_0: Array | None) -> Array:
        """x at the first visit: noise, or for img2img the image's latents with noise added."""
        if x_0 is None:
            return noise * np.float32(sampler.init_noise_sigma)
        return sampler.add_noise(x_0, noise, 0)

    def _previews(self, sampler: Sampler, settings: GenerationSettings) -> list[Image.Image]:
        """Images of the x_0 that the last step predicted."""
        if settings.preview is None or sampler.pred_original_sample is None:
            return []
        if settings.preview == "decoder":
            return self._decode(sampler.pred_original_sample.astype(np.float32), settings)
        matrix = self._latent_to_rgb()
        pixels = np.einsum("nchw,cr->nhwr", sampler.pred_original_sample, matrix[:-1]) + matrix[-1]
        return [image_arrays.to_image(p) for p in pixels]

    def _decode(self, latents: Array, settings: GenerationSettings) -> list[Image.Image]:
        tile = settings.decode_tile and settings.decode_tile // self.pixels_per_latent
        return self.networks.decode(latents, tile)

    def _latent_to_rgb(self) -> Array:
        """[channels + 1, 3]: a linear map and its constant. Raises RcdeployError when the package has none."""
        matrix = np.asarray(self.package.facts.latent_to_rgb, np.float32)
        if matrix.shape != (self.package.latents.shape[0] + 1, 3):
            raise RcdeployError("this package has no latent_to_rgb", fix='Use preview="decoder".')
        return matrix

    def _record(self, settings: GenerationSettings, seconds: dict[str, float]) -> dict[str, Any]:
        return {
            **settings.as_dict(),
            "device": self.device,
            "backend": self.networks.options.backend,
            "precision": self.networks.options.precision,
            "threads": self.networks.options.threads,
            "tuned": self.tuning is not None,
            "seconds": seconds,
        }
