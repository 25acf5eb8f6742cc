"""The page at /: a prompt, previews, a gallery. Plain files of this package, no build step, nothing from elsewhere."""

from __future__ import annotations

import gzip
import itertools
import logging
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from ..package import Package
from ..samplers import SAMPLERS
from .api_errors import RESPONSES, ApiError
from .service import Service

LOG = logging.getLogger("rcdeploy_runtime.server")
FOLDER = Path(__file__).parent / "page_files"
KINDS = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
MAX_CAPTIONS = 200
MAX_CAPTION_BYTES = 2**20
router = APIRouter()


class PageFacts(BaseModel):
    """What the page shows before anything is drawn, and the bounds of its fields."""

    model: str
    width: int
    height: int
    size_multiple: int
    is_fixed_size: bool
    sampler: str
    samplers: list[str]
    steps: int
    guidance_scale: float
    can_edit: bool
    max_steps: int
    max_prompt_characters: int
    captions: list[str]
    models: list[str]


@router.get("/", include_in_schema=False)
async def index() -> FileResponse:
    return FileResponse(FOLDER / "index.html", media_type="text/html", headers=HEADERS)


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> FileResponse:
    if name not in KINDS:
        raise ApiError(404, "there is no such file", code="not_found")
    return FileResponse(FOLDER / name, media_type=KINDS[name], headers=HEADERS)


@router.get("/v1/page", responses=RESPONSES)
async def page_facts(request: Request, response: Response, model: str | None = None) -> PageFacts:
    """What the page at / shows of a model."""
    service: Service = request.app.state.service
    name, limits = service.name(model), service.settings.limits
    network = service.models[name]
    package = network.package
    response.headers["cache-control"] = "no-store"
    return PageFacts(
        model=name,
        width=network.width,
        height=network.height,
        size_multiple=package.facts.size_multiple,
        is_fixed_size=package.facts.static_size is not None,
        sampler=package.sampling.sampler,
        samplers=list(SAMPLERS),
        steps=package.sampling.num_inference_steps,
        guidance_scale=package.sampling.guidance_scale,
        can_edit=package.has_encoder,
        max_steps=limits.steps,
        max_prompt_characters=limits.prompt_characters,
        captions=captions(package),
        models=list(service.models),
    )


def captions(package: Package) -> list[str]:
    """Captions that the model was made for, evenly spread over their file; none where it has no text of them."""
    name = package.facts.captions
    if name is None:
        return []
    try:
        file = package.file(name)
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            data = opened.read(MAX_CAPTION_BYTES)
        lines = [line.strip() for line in data.decode("utf-8", "ignore").splitlines()]
    except Exception as error:  # examples, no more: the server draws without them
        LOG.warning("no captions for the page: %s", error)
        return []
    lines = [line for line in lines if line]
    return list(itertools.islice(lines[:: max(1, len(lines) // MAX_CAPTIONS)], MAX_CAPTIONS))
