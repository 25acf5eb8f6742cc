"""openvino-genai from this project's noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai


class RuntimeNoise(openvino_genai.Generator):
    """The runtime's noise of a seed: genai asks for x_T alone with DDIM and Euler."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = np.random.Generator(np.random.Philox(key=seed))

    def next(self) -> float:
        return float(self.rng.standard_normal(dtype=np.float32))

    def randn_tensor(self, shape: openvino.Shape) -> openvino.Tensor:
        return openvino.Tensor(self.rng.standard_normal(tuple(shape), np.float32))


def genai_image(package: Path, prompt: str, seed: int, **settings: Any) -> np.ndarray:
    """Its image [64, 64, 3] of an OpenVINO package, computed in fp32."""
    pipeline = openvino_genai.Text2ImagePipeline(str(package), "CPU", INFERENCE_PRECISION_HINT="f32")
    image = pipeline.generate(prompt, width=64, height=64, generator=RuntimeNoise(seed), **settings).data[0]
    return np.asarray(image, int)
