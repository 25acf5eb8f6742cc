"""Answers: one JSON body, or server-sent events while an image is drawn."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request, Response
from PIL import Image

from .api_errors import ApiError, error_body
from .image_data import encode_image
from .jobs import Failed, Finished, Gone, Job, Late, Progress
from .schema import ImageData, ImageRequest, ImagesResponse
from .service import Service, size_text

NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
USAGE = {**NO_TOKENS, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
"""tokens are not counted here, but OpenAI's schema requires them"""
FAILED = "the images could not be drawn; the server's log has more about it"
LATE = "the server gave up: the images were not drawn in the time that a request may take"
CLIENT_GONE = 499
"""a status for the log, which nobody receives"""


async def whole_answer(service: Service, job: Job, body: ImageRequest, request: Request) -> ImagesResponse | Response:
    with service.awaited(job):
        event = await job.events.get()
        while isinstance(event, Progress):
            event = await job.events.get()
    if isinstance(event, Gone):
        return Response(status_code=CLIENT_GONE)
    if isinstance(event, Failed):
        raise ApiError(500, FAILED, code="generation_failed")
    if isinstance(event, Late):
        raise ApiError(504, LATE, code="timeout")
    data = []
    for image, seed in zip(event.images, job.seeds, strict=True):
        encoded = await asyncio.to_thread(_encode, image, body, _parameters(job, seed))
        if body.response_format == "url":
            name = service.images.put(encoded, body.output_format or "png")
            data.append(ImageData(url=str(request.url_for("stored_image", name=name)), seed=seed))
        else:
            data.append(ImageData(b64_json=base64.b64encode(encoded).decode(), seed=seed))
    return ImagesResponse(
        created=int(time.time()), data=data, output_format=body.output_format or "png", size=size_text(job)
    )


async def event_stream(service: Service, job: Job, body: ImageRequest, kind: str) -> AsyncIterator[str]:
    """kind: image_generation or image_edit. Events of several images carry the `index` of theirs."""
    sent = 0
    with service.awaited(job):
        event = await job.events.get()
        while isinstance(event, Progress):
            if event.completed in preview_steps(event.total, body.partial_images or 0):
                for index, image in enumerate(event.previews):
                    facts = {"partial_image_index": sent, **await _image_facts(image, job, body, index, "")}
                    yield _event(f"{kind}.partial_image", facts)
                sent += 1
            event = await job.events.get()
    if isinstance(event, Failed):
        yield f"event: error\ndata: {json.dumps(error_body(500, FAILED, 'generation_failed'))}\n\n"
    if isinstance(event, Late):
        yield f"event: error\ndata: {json.dumps(error_body(504, LATE, 'timeout'))}\n\n"
    if isinstance(event, Finished):
        for index, image in enumerate(event.images):
            parameters = _parameters(job, job.seeds[index])
            facts = {**await _image_facts(image, job, body, index, parameters), "usage": USAGE}
            yield _event(f"{kind}.completed", facts)


def preview_steps(total: int, count: int) -> set[int]:
    """After which of `total` steps a preview is sent: up to `count`, evenly spread; the last step's is the image."""
    return {round(k * total / (count + 1)) for k in range(1, count + 1)} - {0, total}


async def _image_facts(image: Image.Image, job: Job, body: ImageRequest, index: int, parameters: str) -> dict[str, Any]:
    encoded = await asyncio.to_thread(_encode, _enlarged(image, job), body, parameters)
    return {
        "b64_json": base64.b64encode(encoded).decode(),
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": body.output_format or "png",
        "quality": "auto",
        "size": size_text(job),
        "index": index,
        "seed": job.seeds[index],
    }


def _enlarged(image: Image.Image, job: Job) -> Image.Image:
    """A cheap preview has one pixel a latent; clients get every image in the size that they asked for."""
    size = (job.shape.width, job.shape.height)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _encode(image: Image.Image, body: ImageRequest, parameters: str) -> bytes:
    quality = 100 if body.output_compression is None else body.output_compression
    return encode_image(image, body.output_format or "png", quality, parameters)


def _parameters(job: Job, seed: int) -> str:
    """How the image was made, in the form that web UIs of Stable Diffusion write into a png and read from it."""
    shape = job.shape
    lines = [job.prompt]
    if shape.negative_prompt:
        lines.append(f"Negative prompt: {shape.negative_prompt}")
    facts = {
        "Steps": shape.num_inference_steps,
        "Sampler": shape.sampler,
        "CFG scale": f"{shape.guidance_scale:g}",
        "Seed": seed,
        "Size": size_text(job),
        "Model": shape.model,
    }
    if job.image is not None:
        facts["Denoising strength"] = f"{job.strength:g}"
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])


def _event(kind: str, facts: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **facts})}\n\n"
