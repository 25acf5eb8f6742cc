"""Packages in Optimum's pipelines, unmodified: `make test-interop`, in the older environment that Optimum needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.interop
BUILD = Path(__file__).parent.parent / "build"


@pytest.mark.parametrize(
    ("package", "name"), [("interop", "ORTStableDiffusionPipeline"), ("interop-xl", "ORTStableDiffusionXLPipeline")]
)
def test_optimum_generates_the_same_image(package: str, name: str) -> None:
    import optimum.onnxruntime

    from rcdeploy_runtime import TextToImage

    prompt = "a photo of a red boot on a white background"
    seed = 5
    model = TextToImage.load(BUILD / package)
    ours, _ = model.generate(prompt, seed=seed, guidance_scale=4.0, num_inference_steps=10)
    shape = (1, *model.package.manifest.latents["shape"])
    noise = np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape, np.float32)
    pipeline = getattr(optimum.onnxruntime, name).from_pretrained(BUILD / package)
    import torch

    size = {"height": ours[0].height, "width": ours[0].width}
    settings = {**size, "guidance_scale": 4.0, "num_inference_steps": 10}
    theirs = pipeline(prompt, latents=torch.from_numpy(noise), **settings).images[0]
    assert np.abs(np.asarray(ours[0], int) - np.asarray(theirs, int)).max() <= 1
