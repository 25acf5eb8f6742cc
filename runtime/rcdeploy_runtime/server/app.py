"""The routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..text_to_image import TextToImage
from .answers import event_stream, whole_answer
from .api_errors import RESPONSES, ApiError, add_handlers
from .gate import Gate
from .page import router as page_router
from .schema import EditRequest, GenerationRequest, ImageRequest, ImagesResponse, Model, ModelList
from .service import Service
from .settings import ServerSettings

IMAGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    **RESPONSES,
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Images, or their events"},
}
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""fastapi's own would go to whatever endpoint the environment names"""
router = APIRouter()


@router.post(
    "/v1/images/generations", responses=IMAGE_RESPONSES, response_model=ImagesResponse, response_model_exclude_none=True
)
async def generations(body: GenerationRequest, request: Request) -> Any:
    """Draw images from a prompt."""
    return await _answer(body, request, "image_generation")


@router.post(
    "/v1/images/edits", responses=IMAGE_RESPONSES, response_model=ImagesResponse, response_model_exclude_none=True
)
async def edits(body: Annotated[EditRequest, Form(media_type="multipart/form-data")], request: Request) -> Any:
    """Draw an image anew, or the part of it where the mask is transparent."""
    return await _answer(body, request, "image_edit")


async def _answer(body: ImageRequest, request: Request, kind: str) -> Any:
    service = _service(request)
    job = await service.submit(body, request)
    if body.stream:
        events = event_stream(service, job, body, kind)
        return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)
    return await whole_answer(service, job, body, request)


@router.get("/v1/models", responses=RESPONSES)
async def models(request: Request) -> ModelList:
    """The models that draw here; the first is the one of requests that name none."""
    service = _service(request)
    return ModelList(data=[_model(service, name) for name in service.models])


@router.get("/v1/models/{model}", responses=RESPONSES)
async def model(model: str, request: Request) -> Model:
    service = _service(request)
    return _model(service, service.name(model))


@router.get("/images/{name}", responses={**RESPONSES, 200: {"content": {"image/*": {}}}}, response_class=Response)
async def stored_image(name: str, request: Request) -> Response:
    """An image of response_format url, while it is kept."""
    data = _service(request).images.get(name)
    if data is None:
        raise ApiError(404, "there is no such image, or no longer", code="not_found")
    headers = {"cache-control": "private", "x-content-type-options": "nosniff"}
    return Response(data, media_type=f"image/{name.rpartition('.')[2]}", headers=headers)


@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """Whether the process answers."""
    return "ok"


@router.get("/readyz", responses={503: {"content": {"text/plain": {}}}}, response_class=PlainTextResponse)
async def readyz(request: Request) -> PlainTextResponse:
    """Whether images can be drawn."""
    ready = _service(request).ready
    return PlainTextResponse("ready" if ready else "not ready", 200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse, responses=RESPONSES)
async def metrics(request: Request) -> Response:
    """Counts and times, as Prometheus reads them."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _model(service: Service, name: str) -> Model:
    return Model(id=name, created=service.created)


def create_app(models: Mapping[str, TextToImage], settings: ServerSettings) -> FastAPI:
    """The app for loaded packages, by the names that requests have for them; the first draws where none is named.

    Its worker runs from startup to shutdown, and finishes what it took.
    """
    service = Service(models, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.queue.stop()
        service.worker.join()

    app = FastAPI(
        title="rcdeploy",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(page_router)
    add_handlers(app)
    app.add_middleware(Gate, settings=settings, metrics=service.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app
