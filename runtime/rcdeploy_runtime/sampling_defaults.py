"""How a model wants to be sampled: sampler, steps and guidance, as manifests of runs and packages record them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingDefaults:
    """What generation does where the caller does not choose. Models that record nothing have these (the paper's)."""

    sampler: str = "ddim"
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
