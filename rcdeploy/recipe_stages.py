"""The sections of a recipe that go beyond the paper: folded guidance, few steps, a tiny decoder, the package."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .recipe_section import BatchSize, InferenceSteps, Section, Seed, Steps


class Distill(Section):
    guidance_scale: float | None = Field(
        None,
        gt=1,
        le=100,
        description="the student learns the teacher's output under classifier-free guidance of this scale, and is then "
        "sampled with one UNet call a step (Meng et al. 2023, stage one). By default it learns the conditional output "
        "(the paper), and is sampled with guidance: two calls a step",
    )


class FewSteps(Section):
    num_inference_steps: InferenceSteps = Field(2, description="UNet calls per image that the student is made for")
    max_steps: Steps = Field(4000, description="training steps")
    global_batch_size: BatchSize = Field(32, description="samples per update, over all processes")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")


class Decoder(Section):
    channels: int = Field(64, gt=0, le=1024, description="channels of the tiny decoder (TAESD: 64)")
    max_steps: Steps = Field(4000, description="training steps")
    batch_size: BatchSize = Field(32, description="latents per step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    seed: Seed = Field(0, description="seed of its first weights and of everything that its training samples")


class Export(Section):
    format: Literal["onnx", "openvino"] = Field("onnx", description="format of the package")
    precision: str = Field("fp32", description="precision of the package, as `rcdeploy export --precision`")
