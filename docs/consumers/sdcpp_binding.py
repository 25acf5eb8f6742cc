"""One image by stable-diffusion.cpp's Python binding, of a single file or a diffusers folder.

MODEL SETTINGS (JSON: arguments of generate_image, and taesd_path) IMAGE (raw RGB).
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from stable_diffusion_cpp import StableDiffusion

model, settings, image = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
pipeline = StableDiffusion(
    model_path=model,
    taesd_path=settings.pop("taesd_path", ""),
    rng_type="cpu",  # torch's noise of a seed
    sampler_rng_type="cpu",
    vae_decode_only=True,
    n_threads=1,
)
if not pipeline.model:  # the binding raises nothing, and crashes when it is used, or freed
    os._exit(1)
pictures = pipeline.generate_image(sample_method="euler", scheduler="discrete", **settings)
image.write_bytes(np.asarray(pictures[0].convert("RGB")).tobytes())
