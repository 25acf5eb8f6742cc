"""The bodies of requests and answers: OpenAI's names, and those fields that a diffusion model has beside them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..limits import MAX_GUIDANCE_SCALE, MAX_PROMPT_CHARACTERS, MAX_SEED, MAX_TRAIN_TIMESTEPS, MIN_SEED
from ..samplers import SAMPLERS
from .settings import MAX_IMAGES


def _known_sampler(value: str) -> str:
    if value not in SAMPLERS:
        raise ValueError(f"must be one of {', '.join(SAMPLERS)}")
    return value


Sampler = Annotated[str, AfterValidator(_known_sampler), Field(json_schema_extra={"enum": list(SAMPLERS)})]


class ImageRequest(BaseModel):
    """What generations and edits have in common. null is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    model: str | None = Field(None, description="The name that /v1/models has, or nothing.")
    n: int | None = Field(1, ge=1, le=MAX_IMAGES, description="Number of images.")
    size: str | None = Field(
        "auto", pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$", description="WIDTHxHEIGHT; auto: the model's own."
    )
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(100, ge=0, le=100, description="Quality of jpeg and webp.")
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3, description="Previews of each image, when it is streamed.")

    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED, description="Image k has seed + k; random by default.")
    steps: int | None = Field(None, ge=1, le=MAX_TRAIN_TIMESTEPS, description="The model's own by default.")
    sampler: Sampler | None = Field(None, description="The model's own by default.")
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE, description="The model's own by default.")
    negative_prompt: str | None = Field("", max_length=MAX_PROMPT_CHARACTERS)

    background: Literal["opaque", "auto"] | None = Field("auto", description="Images are opaque.")
    quality: str | None = Field(None, description="Has no effect, as the next ones: set steps.")
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None


class GenerationRequest(ImageRequest):
    """The JSON body of /v1/images/generations."""

    model_config = ConfigDict(strict=True)


class EditRequest(ImageRequest):
    """The form of /v1/images/edits. One image; `image[]` is the name that clients give to a list of one."""

    image: UploadFile | None = None
    images: list[UploadFile] = Field([], alias="image[]")
    mask: UploadFile | None = Field(None, description="Transparent where the image is drawn anew; of the same size.")
    strength: float | None = Field(0.8, gt=0, le=1, description="How much of the image changes.")
    input_fidelity: str | None = Field(None, description="Has no effect: set strength.")


class ImageData(BaseModel):
    """One image. seed: with which it can be drawn again."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImagesResponse(BaseModel):
    created: int
    data: list[ImageData]
    background: str = "opaque"
    output_format: str
    size: str


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rcdeploy"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The shape of every error."""

    error: ErrorDetails
