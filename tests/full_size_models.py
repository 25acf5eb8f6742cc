"""Models of SD-1.4's full size with random weights, as a diffusers folder and a single file, and what diffusers draws.

    python tests/full_size_models.py build/sdcpp b-tiny b-base     # 1 to 2 GB each; 5 GB of memory

Weights of the last layers are enlarged, so that an image has contrast and depends on every network.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from rcdeploy.decoder.network import build_tiny, tiny_config
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.recipe_stages import Decoder
from rcdeploy.student.build import build_student
from rcdeploy.student.sd14 import SD14_UNET_CONFIG
from rcdeploy.student.sdxl import SDXL_CONFIGS
from rcdeploy.student.spec import student_config
from rcdeploy_export.single_file import write_single_file

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SETTINGS: dict[str, Any] = {
    "prompt": "a photo of a cat",
    "seed": 5,
    "sample_steps": 2,
    "cfg_scale": 1.0,
    "width": 64,
    "height": 64,
}
"""stable-diffusion.cpp's arguments"""
TOKENS = [49406, 320, 1125, 539, 320, 2368]
"""CLIP's tokens of the prompt; the end of text, 49407, fills the rest"""


def write_model(folder: Path, name: str | None) -> None:
    """`folder`/model (diffusers, fp16), /model.safetensors, /expected.rgb, and the same drawn by a tiny decoder:

    /decoder (TAESD's shape) and /expected_tiny.rgb. name: of a student, None for the teacher.
    """
    sys.path.append(str(EXAMPLES))
    parts = full_size()
    torch.manual_seed(0)
    config = student_config(name, SD14_UNET_CONFIG)[0] if name else SD14_UNET_CONFIG
    unet = build_student(config, 0)
    unet.conv_out.weight.data *= 3
    vae = parts.vae()
    vae.decoder.conv_out.weight.data *= 4
    tokenizer = parts.tokenizer_of_clip(folder / "model/tokenizer")
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=CLIPTextModel(parts.text_config(tokenizer, SDXL_CONFIGS["text_encoder"])).half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=parts.noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model")
    name_as_published(folder / "model/text_encoder/model.safetensors")
    model = LatentDiffusionModel(str(folder / "model"))
    tiny = build_tiny(tiny_config(model.vae_config, Decoder()), seed=1)
    tiny.decoder.layers[-1].weight.data *= 4
    tiny.decoder.layers[-1].bias.data += 0.5
    tiny.save_pretrained(folder / "decoder")
    (folder / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    write_single_file(model, folder / "model.safetensors")
    draw(folder)


def full_size() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size", EXAMPLES / "full_size.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_as_published(file: Path) -> None:
    """SD-1.x's own files have a prefix that transformers 5 leaves out, and stable-diffusion.cpp expects it."""
    weights = load_file(file)
    save_file({f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}, file, {"format": "pt"})


@torch.no_grad()
def draw(folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    # stable-diffusion.cpp's steps of its "discrete" scheduler
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    ids = torch.tensor([TOKENS + [49407] * (77 - len(TOKENS))])
    settings = {
        "prompt_embeds": pipeline.text_encoder(ids).last_hidden_state,
        "num_inference_steps": SETTINGS["sample_steps"],
        "guidance_scale": SETTINGS["cfg_scale"],
        "height": SETTINGS["height"],
        "width": SETTINGS["width"],
    }
    for name in ("expected.rgb", "expected_tiny.rgb"):
        if "tiny" in name:
            pipeline.vae = AutoencoderTiny.from_pretrained(folder / "decoder")
        image = pipeline(**settings, generator=torch.Generator().manual_seed(SETTINGS["seed"])).images[0]
        (folder / name).write_bytes(np.asarray(image).tobytes())


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        write_model(Path(sys.argv[1]) / argument, None if argument == "teacher" else argument)
