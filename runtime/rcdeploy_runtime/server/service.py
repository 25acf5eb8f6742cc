"""From a checked body to a job in the queue, and from its events to an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from fastapi import Request
from PIL import Image

from ..errors import RcdeployError
from ..text_to_image import TextToImage
from .api_errors import ApiError
from .image_data import ImageStore, decode_image, transparent_mask
from .jobs import Full, Gone, Job, JobQueue, Late, Shape, Stopped
from .metrics import Metrics
from .schema import EditRequest, ImageRequest
from .settings import ServerSettings
from .worker import Worker


class Service:
    """The models, by their names, with all that stands before them. `app.state.service` is one.

    A request that names no model gets the first.
    """

    def __init__(self, models: Mapping[str, TextToImage], settings: ServerSettings) -> None:
        self.models, self.settings = models, settings
        self.default = next(iter(models))
        limits = settings.limits
        self.queue = JobQueue(limits.queue, limits.images, settings.batch_window_s)
        self.metrics = Metrics(lambda: len(self.queue))
        self.worker = Worker(models, self.queue, self.metrics)
        self.images = ImageStore(settings.url_s)
        self.created = int(time.time())

    @property
    def ready(self) -> bool:
        return self.worker.is_alive() and not self.queue.stopped

    def name(self, asked: str | None) -> str:
        """The name of the model that a request asks for. Raises ApiError for one that is not here."""
        name = asked or self.default
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"there is no such model; here are: {known}", code="model_not_found", param="model")
        return name

    async def submit(self, body: ImageRequest, request: Request) -> Job:
        """A job in the queue, which is cancelled when the client goes away. Raises ApiError where there is none."""
        job = await self._job(body)
        request.scope["log"] = {"images": len(job.seeds), "size": f"{job.shape.width}x{job.shape.height}"}
        if self.settings.log_prompts:
            request.scope["log"]["prompt"] = body.prompt
        try:
            self.queue.put(job)
        except Full as full:
            headers = {"retry-after": str(full.retry_after_s)}
            raise ApiError(429, str(full), code="queue_full", headers=headers) from None
        except Stopped:
            raise ApiError(503, "the server is stopping", code="stopping") from None
        job.timer = job.loop.call_later(self.settings.limits.seconds, self._give_up, job)
        watching = asyncio.create_task(self._watch(job, request))
        request.state.watching = watching  # a task that nobody holds may be collected
        return job

    async def _watch(self, job: Job, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.queue.cancel(job)
        job.events.put_nowait(Gone())

    def _give_up(self, job: Job) -> None:
        self.queue.cancel(job)
        job.events.put_nowait(Late())

    @contextmanager
    def awaited(self, job: Job) -> Iterator[None]:
        """Cancels the job where it is left before its end, as when the server gives up after its grace."""
        try:
            yield
        finally:
            self.queue.cancel(job)
            if job.timer is not None:
                job.timer.cancel()

    async def _job(self, body: ImageRequest) -> Job:
        self._check_limits(body)
        name = self.name(body.model)
        model = self.models[name]
        sampling = model.package.sampling.override(body.sampler, body.steps, body.guidance_scale)
        height, width = self._size(model, body.size)
        if sampling.num_inference_steps > self.settings.limits.steps:
            raise ApiError(400, f"steps: at most {self.settings.limits.steps:,} are allowed", param="steps")
        preview = None
        if body.stream and body.partial_images:
            preview = "rgb" if model.package.facts.latent_to_rgb else "decoder"
        first = int(np.random.SeedSequence().generate_state(1)[0]) if body.seed is None else body.seed
        job = Job(
            prompt=body.prompt,
            seeds=tuple(first + k for k in range(body.n or 1)),
            shape=Shape(
                name,
                height,
                width,
                sampling.num_inference_steps,
                sampling.sampler,
                float(sampling.guidance_scale),
                body.negative_prompt or "",
                preview,
                self.settings.decode_tile,
            ),
            loop=asyncio.get_running_loop(),
        )
        if isinstance(body, EditRequest):
            job.image, job.mask = await self._images(model, body)
            job.strength = 0.8 if body.strength is None else body.strength
        try:  # the arguments are checked at the call; nothing is drawn before the stream is read
            model.stream([job.prompt] * len(job.seeds), seed=job.seeds, **job.arguments())
        except RcdeployError as error:
            raise ApiError(400, str(error), code="invalid_value") from None
        return job

    def _check_limits(self, body: ImageRequest) -> None:
        limits = self.settings.limits
        if body.stream and body.response_format == "url":
            raise ApiError(400, "streamed images are b64_json, without a url", param="response_format")
        for name, value, allowed in (
            ("prompt", len(body.prompt), limits.prompt_characters),
            ("negative_prompt", len(body.negative_prompt or ""), limits.prompt_characters),
            ("n", body.n or 1, limits.images),
        ):
            if value > allowed:
                unit = " characters" if name != "n" else ""
                raise ApiError(400, f"{name}: at most {allowed:,}{unit} are allowed", code="too_large", param=name)

    def _size(self, model: TextToImage, size: str | None) -> tuple[int, int]:
        """Height and width in pixels."""
        if size in (None, "auto"):
            return model.height, model.width
        width, height = (int(side) for side in str(size).split("x"))
        allowed = max(self.settings.limits.pixels, model.height * model.width)
        if height * width > allowed:
            raise ApiError(400, f"size: at most {allowed:,} pixels are allowed", code="too_large", param="size")
        return height, width

    async def _images(self, model: TextToImage, body: EditRequest) -> tuple[Image.Image, Image.Image | None]:
        """Image and mask of an edit; the image's own transparency is its mask where it has no other."""
        if not model.package.has_encoder:
            raise ApiError(400, "this model has no encoder: it draws from prompts only", code="unsupported")
        uploads = [upload for upload in [body.image, *body.images] if upload is not None]
        if len(uploads) != 1:
            raise ApiError(400, f"image: one is needed, and there are {len(uploads)}", param="image")
        limit = self.settings.limits.pixels
        image = await asyncio.to_thread(decode_image, await uploads[0].read(), "image", limit)
        if body.mask is None:
            return image, transparent_mask(image)
        mask_image = await asyncio.to_thread(decode_image, await body.mask.read(), "mask", limit)
        mask = transparent_mask(mask_image)
        if mask is None or mask.size != image.size:
            raise ApiError(
                400,
                "mask: it must have transparent pixels, and the size of the image",
                code="invalid_image",
                param="mask",
            )
        return image, mask


def size_text(job: Job) -> str:
    return f"{job.shape.width}x{job.shape.height}"
