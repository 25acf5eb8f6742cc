"""The sections of a recipe that go beyond the paper: folded guidance, few steps, a tiny decoder, the package."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .recipe_section import MAX_STEPS, BatchSize, Fraction, InferenceSteps, Section, Seed, Steps


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
    num_inference_steps: InferenceSteps = Field(
        2, description="UNet calls per image that the student is made for; a divisor of the teacher's timesteps"
    )
    solver: Literal["teacher", "student"] = Field(
        "teacher",
        description="who follows the trajectory that the student learns to leap over: the teacher under guidance (two "
        "calls a step), or the distilled student (one call a step where guidance is folded in)",
    )
    solver_steps: InferenceSteps = Field(4, description="DDIM steps of the solver for each step of the student")
    own_states: Fraction = Field(
        0.5,
        description="share of the later steps' starts that the student itself arrives at from noise; the others are "
        "noised latents of the cache, with random conditioning",
    )
    huber_c: float | None = Field(
        None, gt=0, description="c of the pseudo-Huber loss, per latent element; by default the squared error"
    )
    max_steps: Steps = Field(4000, description="training steps")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
    lr_schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = Field(
        "cosine", description="learning rate over the stage, as diffusers' schedule of that name"
    )
    warmup_steps: int = Field(50, ge=0, le=MAX_STEPS, description="updates in which the learning rate rises from 0")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the EMA weights, which the result has")


class Decoder(Section):
    channels: int = Field(64, gt=0, le=1024, description="channels of the tiny decoder (TAESD: 64)")
    max_steps: Steps = Field(4000, description="training steps")
    batch_size: BatchSize = Field(32, description="latents per step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    seed: Seed = Field(0, description="seed of its first weights and of everything that its training samples")


class Export(Section):
    format: Literal["onnx", "openvino"] = Field("onnx", description="format of the package")
    precision: str = Field("fp32", description="precision of the package, as `rcdeploy export --precision`")
