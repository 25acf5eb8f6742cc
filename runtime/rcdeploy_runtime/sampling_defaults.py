"""How a model wants to be sampled: sampler, steps and guidance, as manifests of runs and packages record them."""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDING_WIDTH = 256
"""of a guidance scale, in rcdeploy's students and LCM's that take it; diffusers' time_cond_proj_dim"""
FEW_STEP_SAMPLERS = ("lcm", "tcd")
"""of models that are distilled for a few steps, and gain nothing from more"""
MAX_FEW_STEPS = 8
"""a model that wants so few, and no guidance, was distilled for them, whatever its sampler"""


@dataclass(frozen=True)
class SamplingDefaults:
    """What generation does where the caller does not choose. Models that record nothing have these (the paper's)."""

    sampler: str = "ddim"
    num_inference_steps: int = 25
    guidance_scale: float = 7.5

    def override(
        self,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> SamplingDefaults:
        """A copy with what the caller chose; None keeps the model's own."""
        return SamplingDefaults(
            self.sampler if sampler is None else sampler,
            self.num_inference_steps if num_inference_steps is None else num_inference_steps,
            self.guidance_scale if guidance_scale is None else guidance_scale,
        )

    @property
    def unet_calls(self) -> int:
        """Of an image, each with a row for every guidance branch. PNDM's Runge-Kutta start is not counted."""
        n = self.num_inference_steps
        return {"heun": 2 * n - 1, "pndm": n + (n > 1)}.get(self.sampler, n)

    def remark(self, num_inference_steps: int) -> str | None:
        """A warning where a few-step model is sampled with more steps than it was made for."""
        few = self.num_inference_steps <= MAX_FEW_STEPS and self.guidance_scale <= 1
        if not (few or self.sampler in FEW_STEP_SAMPLERS) or num_inference_steps <= self.num_inference_steps:
            return None
        made_for = f"{self.num_inference_steps} step{'s' if self.num_inference_steps > 1 else ''}"
        return f"this model was made for {made_for}; {num_inference_steps} take longer, and may look worse"

    def __str__(self) -> str:
        steps = "steps" if self.num_inference_steps > 1 else "step"
        return f"{self.num_inference_steps} {self.sampler.upper()} {steps}, guidance {self.guidance_scale:g}"


@dataclass(frozen=True)
class SamplingFacts:
    """What facts of runs and packages have in common. sampling: None where rcdeploy 0.1 wrote them."""

    sampling: SamplingDefaults | None = None
