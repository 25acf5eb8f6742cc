"""A package in Optimum's pipeline, unmodified: `make test-interop`, in the older environment that Optimum needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.interop
PACKAGE = Path(__file__).parent.parent / "build/interop"


def test_optimum_generates_the_same_image() -> None:
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    from rcdeploy_runtime import TextToImage

    prompt = "a photo of a red boot on a white background"
    seed = 5
    model = TextToImage.load(PACKAGE)
    ours, _ = model.generate(prompt, seed=seed, guidance_scale=4.0, num_inference_steps=10)
    shape = (1, *model.package.manifest.latents["shape"])
    noise = np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape, np.float32)
    pipeline = ORTStableDiffusionPipeline.from_pretrained(PACKAGE)
    import torch

    theirs = pipeline(prompt, latents=torch.from_numpy(noise), guidance_scale=4.0, num_inference_steps=10).images[0]
    assert np.abs(np.asarray(ours[0], int) - np.asarray(theirs, int)).max() <= 1
