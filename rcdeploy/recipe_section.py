"""What every section of a recipe is: strict, finite, bounded. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**63 - 1
"""What both numpy's Philox and torch's generators take."""
MAX_STEPS = 10**9
MAX_BATCH_SIZE = 2**16
MAX_SHARD_SIZE = 2**20
MAX_COUNT = 10**9
"""Prompts or images."""
MAX_INFERENCE_STEPS = 1000
"""Timesteps of the usual noise schedules: a sampler cannot visit more."""
MAX_RESOLUTION = 8192
MAX_LAYERS = 64
"""In a block; no known UNet has a tenth of them."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]
BatchSize = Annotated[int, Field(gt=0, le=MAX_BATCH_SIZE)]
LayerCount = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
InferenceSteps = Annotated[int, Field(gt=0, le=MAX_INFERENCE_STEPS)]


class Section(BaseModel):
    """Strict: an unknown key is an error. Numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)
