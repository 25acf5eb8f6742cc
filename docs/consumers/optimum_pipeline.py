"""One image by Optimum's ONNX Runtime pipeline, of an ONNX package: FOLDER SETTINGS (JSON) IMAGE (raw RGB)."""

import json
import sys
from pathlib import Path

import numpy as np
import optimum.onnxruntime
import torch

folder, settings, image = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
shape = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["latents"]["shape"]
noise = np.random.Generator(np.random.Philox(key=settings.pop("seed"))).standard_normal((1, *shape), np.float32)
kind = "ORTStableDiffusionXLPipeline" if (folder / "text_encoder_2").is_dir() else "ORTStableDiffusionPipeline"
pipeline = getattr(optimum.onnxruntime, kind).from_pretrained(folder)
image.write_bytes(np.asarray(pipeline(latents=torch.from_numpy(noise), **settings).images[0]).tobytes())
