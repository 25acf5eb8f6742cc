"""The sections of a recipe that go beyond the paper: folded guidance, few steps, a tiny decoder, the package."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .recipe_section import (
    MAX_RESOLUTION,
    MAX_STEPS,
    BatchSize,
    Fraction,
    InferenceSteps,
    Section,
    Seed,
    Steps,
    Weight,
)

Scale = Annotated[float, Field(gt=1, le=100)]
LowestScale = Annotated[float, Field(ge=1, le=100)]
LCM_SOLVER_STEPS = 50
"""of the whole trajectory (Luo et al. 2023)"""


class Distill(Section):
    guidance_scale: Scale | tuple[LowestScale, Scale] | None = Field(
        None,
        description="the student learns the teacher's output under classifier-free guidance of this scale, and is then "
        "sampled with one UNet call a step (Meng et al. 2023, stage one). A range, [1.0, 8.0]: the student takes the "
        "scale as an input, and any scale in it costs one call. By default it learns the conditional output (the "
        "paper), and is sampled with guidance: two calls a step",
    )

    @model_validator(mode="after")
    def _range_goes_up(self) -> Distill:
        if isinstance(self.guidance_scale, tuple) and self.guidance_scale[0] >= self.guidance_scale[1]:
            low, high = self.guidance_scale
            raise ValueError(f"guidance_scale is a range from {low:g} to {high:g}: the higher scale comes second")
        return self

    @property
    def takes_guidance_scale(self) -> bool:
        """Whether the student takes the guidance scale as an input."""
        return isinstance(self.guidance_scale, tuple)

    @property
    def teacher_calls(self) -> int:
        """Of a training step: guidance needs that of the null condition too."""
        return 1 if self.guidance_scale is None else 2


class FewSteps(Section):
    num_inference_steps: InferenceSteps = Field(
        2, description="UNet calls per image that the student is made for; a divisor of the teacher's timesteps"
    )
    method: Literal["leaps", "consistency"] = Field(
        "leaps",
        description="leaps: the student learns where the solver arrives at the end of each of its steps (progressive "
        "distillation without halvings). consistency: from any timestep it learns to arrive where it arrives itself "
        "from one solver step further on (consistency distillation, phased: Wang et al. 2024; with one step it is that "
        "of LCM)",
    )
    solver: Literal["teacher", "student"] = Field(
        "teacher",
        description="who follows the trajectory that the student learns to leap over: the teacher under guidance (two "
        "calls a step), or the distilled student (one call a step where guidance is folded in)",
    )
    solver_steps: InferenceSteps = Field(
        4,
        description="DDIM steps of the solver for each step of the student; consistency makes one of them at a time, "
        "and takes 50 for all steps together by default (LCM's skipping of 20 timesteps)",
    )
    own_states: Fraction = Field(
        0.5,
        description="share of the later steps' starts that the student itself arrives at from noise; the others are "
        "noised latents of the cache, with random conditioning. With consistency there are the others alone",
    )
    huber_c: float | None = Field(
        None, gt=0, description="c of the pseudo-Huber loss, per latent element; by default the squared error"
    )
    max_steps: Steps = Field(4000, description="training steps of the stage")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
    lr_schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = Field(
        "cosine", description="learning rate over the stage, as diffusers' schedule of that name"
    )
    warmup_steps: int = Field(50, ge=0, le=MAX_STEPS, description="updates in which the learning rate rises from 0")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the EMA weights, which the result has")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_consistency(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("method") != "consistency":
            return data
        steps = data.get("num_inference_steps", 2)
        solver_steps = max(1, LCM_SOLVER_STEPS // steps) if isinstance(steps, int) and steps > 0 else 1
        return {"solver_steps": solver_steps, "own_states": 0.0, **data}

    @model_validator(mode="after")
    def _consistency_has_no_own_states(self) -> FewSteps:
        if self.method == "consistency" and self.own_states:
            raise ValueError('own_states belongs to method = "leaps"; with "consistency" it can only be 0')
        return self


class Decoder(Section):
    channels: int = Field(
        64, gt=0, le=1024, description="channels of every stage of the tiny decoder, and of its encoder (TAESD: 64)"
    )
    blocks: list[Annotated[int, Field(ge=0, le=64)]] | None = Field(
        None,
        description="residual blocks of each stage, from the latents' resolution to the images'; those of the last "
        "stages cost most. One number for each stage of the teacher's VAE; by default TAESD's, [3, 3, 3, 1] for four",
    )
    pixel: Weight = Field(1.0, description="weight of the mean absolute difference of pixels")
    perceptual: Weight = Field(
        1.0,
        description="weight of the relative squared difference of features; they are those of the teacher VAE's own "
        "encoder, which stand in for LPIPS and need no other weights",
    )
    adversarial: Weight = Field(
        0.0,
        description="weight of the verdict of a patch critic, trained with the decoder to tell its images "
        "from the VAE's; 0 for none. 0.04 sharpens where pixels and features leave images smooth",
    )
    adversarial_after: int | None = Field(
        None,
        ge=0,
        le=MAX_STEPS,
        description="steps before the critic joins in; by default three quarters of max_steps. From the first step on "
        "it leaves the decoder behind one without a critic",
    )
    noise: float = Field(
        0.5,
        ge=0,
        le=10,
        description="half of the latents are decoded as cached, the others with noise of a standard deviation between "
        "0 and this: a student's latents are not quite the teacher's. 0 for cached latents alone",
    )
    crop: int | None = Field(
        None,
        gt=0,
        le=MAX_RESOLUTION,
        description="side of a random crop of the latents, which the VAE decodes instead of the whole: 16 makes an "
        "SD-1.4 step 16 times cheaper. The whole by default",
    )
    max_steps: Steps = Field(20_000, description="training steps of the stage")
    batch_size: BatchSize = Field(16, description="latents per step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of Adam")
    lr_schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = Field(
        "cosine", description="learning rate over the training, as diffusers' schedule of that name"
    )
    warmup_steps: int = Field(50, ge=0, le=MAX_STEPS, description="updates in which the learning rate rises from 0")
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which the gradient is clipped")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the EMA weights, which the result has")
    seed: Seed = Field(0, description="seed of its first weights and of everything that its training samples")
    checkpoint_every: Steps = Field(500, description="updates between checkpoints, of which the last two stay")
    log_every: Steps = Field(50, description="updates between lines of metrics.jsonl")
    target_cache_gb: float = Field(
        2.0, ge=0, description="memory in GB for decoded targets, each of which is then computed only once"
    )

    @property
    def critic_from(self) -> int:
        """The step that the critic joins in at."""
        return 3 * self.max_steps // 4 if self.adversarial_after is None else self.adversarial_after

    @model_validator(mode="after")
    def _something(self) -> Decoder:
        if self.pixel == self.perceptual == 0:
            raise ValueError("pixel and perceptual are both 0: the decoder would learn nothing")
        return self


class Export(Section):
    format: Literal["onnx", "openvino", "trt", "executorch", "coreml"] = Field(
        "onnx", description="format of the package; the last two are for phones and need environments of their own"
    )
    precision: Literal["fp32", "fp16", "bf16", "int8", "int8-matmul", "int8-weights"] = Field(
        "fp32", description="precision of UNet and text encoder, as `rcdeploy export --precision`"
    )
    vae_precision: Literal["fp32", "fp16", "bf16"] | None = Field(
        None, description="precision of the VAE; by default bf16 beside openvino's bf16 or int8, else fp32"
    )
    opset: int | None = Field(None, description="ONNX opset; by default that of the format")
    static: bool = Field(False, description="fixed shapes, for accelerators that need them")
    size: str | None = Field(
        None,
        pattern=r"^\d{1,5}x\d{1,5}$",
        description="the fixed size in pixels, HxW (static = true, or a format for phones); the model's own by default",
    )
    external_data: bool = Field(False, description="weights in files of their own, also below 2 GB")
    measure_seconds: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="seconds for measuring a smaller precision: speed, error, images; 0 measures nothing but pictures",
    )
    pictures: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="images that compare a smaller precision with torch; by default as many as measure_seconds allows",
    )
    encoder: bool = Field(True, description="packs the VAE's encoder, which img2img needs")
    judge: bool = Field(
        False, description="packs the judge beside the teacher, so that the package can be evaluated anywhere"
    )
    zip: bool = Field(False, description="also one .zip beside the folder")
