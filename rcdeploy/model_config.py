"""Facts that the configs of a diffusers folder state, read without torch: latent shape, native size, hub names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

Config = Mapping[str, Any]


CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")
SDXL_CONDITION = "text_time"
"""addition_embed_type of SDXL's UNet: pooled text, and image sizes"""
KEPT_IN_INDEX = (
    *("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "unet", "vae", "scheduler"),
    "force_zeros_for_empty_prompt",
)
"""of model_index.json, in students and packages"""
SD1_TOKENIZER = "openai/clip-vit-large-patch14"
"""on the hub; the tokenizer of SD-1.x"""
OWN_KEYS = "rcdeploy_"
"""what keys of unet/config.json begin with that name parts of ours, which diffusers does not know"""
WAVELET_GATING = OWN_KEYS + "wavelet_gating"
"""true: the UNet has the modules of student/wavelet.py in place of its down- and upsamplers (SLIM)"""


def is_hub_name(path: str, folder: Path = Path()) -> bool:
    """Whether `path` names a repository on the hub (OWNER/NAME): it looks like one, and `folder` has no such entry."""
    looks_local = path.startswith((".", "/", "~")) or path.endswith(CHECKPOINT_SUFFIXES) or (folder / path).exists()
    return path.count("/") == 1 and not looks_local and all(path.split("/"))


def checkpoint_help(file: Path | str) -> str:
    """The lines that turn a single-file checkpoint into a diffusers folder."""
    return (
        "Turn it into a diffusers folder. It holds no tokenizer, which is the same for all of SD-1.x:\n"
        f"  hf download {SD1_TOKENIZER} --include '*.json' '*.txt' --local-dir clip\n"
        f"  rcdeploy import {file} --tokenizer clip"
    )


def check_no_checkpoint(path: Path) -> None:
    """Raises RcdeployError for a model in a single file, where a folder is needed."""
    if path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir():
        if not path.exists():
            raise RcdeployError(f"there is no file {path}")
        pickled = path.suffix != ".safetensors"
        raise RcdeployError(
            f"{path} is a single-file checkpoint{', of a kind that may hold code' if pickled else ''}",
            fix="Only .safetensors files are ever opened." if pickled else checkpoint_help(path),
        )


def read_config(file: Path) -> dict[str, Any]:
    """The object in a config.json. Raises RcdeployError when it is missing, not JSON, or no object."""
    config = read_json(file)
    if not isinstance(config, dict):
        raise RcdeployError(f"{file} holds no JSON object", fix="Copy the model again.")
    return config


def read_unet_config(folder: Path) -> dict[str, Any]:
    """The UNet config of a diffusers folder.

    Raises RcdeployError when the folder is absent, is not in diffusers' layout, or holds another kind of network.
    """
    check_no_checkpoint(folder)
    if not folder.is_dir():
        raise RcdeployError(f"there is no folder {folder}")
    if not (folder / "model_index.json").is_file() or not (folder / "unet" / "config.json").is_file():
        raise RcdeployError(
            f"{folder} is not in diffusers' layout: it has no model_index.json and unet/config.json",
            fix="Save it with StableDiffusionPipeline.save_pretrained.",
        )
    config = read_config(folder / "unet" / "config.json")
    if config.get("_class_name") != "UNet2DConditionModel":
        raise RcdeployError(
            f"the UNet in {folder} is a {config.get('_class_name')}, not a UNet2DConditionModel",
            fix="Supported are SD-1.x, SD-2.x and models built like them.",
        )
    has_wavelet_gating(config, str(folder / "unet" / "config.json"))
    return config


def has_wavelet_gating(unet_config: Config, place: str = "unet/config.json") -> bool:
    """Whether the UNet has wavelet gating in place of its samplers.

    Raises RcdeployError, which names `place`, for an unknown value, and for parts of ours that are not known here.
    """
    for key, value in unet_config.items():
        if key.startswith(OWN_KEYS) and (key != WAVELET_GATING or not isinstance(value, bool)):
            allowed = f"only {WAVELET_GATING} = true or false is" if key != WAVELET_GATING else "true and false are"
            raise RcdeployError(
                f"{place}: {key} is {str(value)[:100]!r}; {allowed} known to this version of rcdeploy",
                fix="Open it with the rcdeploy that wrote it, or copy the folder again.",
            )
    return bool(unet_config.get(WAVELET_GATING, False))


def read_supported_unet_config(folder: Path) -> dict[str, Any]:
    """As read_unet_config, for models that can be run: SD-1.x, SD-2.x, SDXL's base model and models built like them.

    Raises RcdeployError as read_unet_config does, and for other added conditioning, SDXL's refiner and SDXL Turbo.
    """
    config = read_unet_config(folder)
    added = config.get("addition_embed_type")
    if added not in (None, SDXL_CONDITION):
        raise RcdeployError(
            f"{folder}: its UNet needs added conditioning of the kind {added}",
            fix="Supported are SD-1.x, SD-2.x, SDXL's base model, and models built like them.",
        )
    if added == SDXL_CONDITION:
        _check_sdxl(folder)
    return config


def _check_sdxl(folder: Path) -> None:
    index = read_config(folder / "model_index.json")
    if index.get("requires_aesthetics_score") or index.get("text_encoder", [None])[0] is None:
        raise RcdeployError(
            f"{folder} is SDXL's refiner, which has no first text encoder and is told an aesthetic score",
            fix="Take the base model: stabilityai/stable-diffusion-xl-base-1.0, or a fine-tune of it.",
        )
    if _is_sdxl_turbo(folder):
        raise RcdeployError(
            f"{folder} looks like SDXL Turbo: it draws in one to four steps already, and knows no null condition",
            fix="Distil from SDXL's base model; [few_steps] makes a student of few steps.",
        )
    missing = [name for name in ("text_encoder_2", "tokenizer_2") if not (folder / name).is_dir()]
    if missing:
        raise RcdeployError(
            f"{folder}: its UNet is SDXL's, and the folder has no {' and no '.join(missing)}",
            fix="Copy the whole model again.",
        )


def _is_sdxl_turbo(folder: Path) -> bool:
    return _scheduler_class(folder) == "EulerAncestralDiscreteScheduler" and not zeros_for_empty_prompt(folder)


def _scheduler_class(folder: Path) -> str:
    return str(read_config(folder / "scheduler" / "scheduler_config.json").get("_class_name"))


def is_other_family(folder: Path) -> bool:
    """Whether a whole diffusers folder is of a family that diffusers can sample and LatentDiffusionModel cannot.

    False for folders that only look damaged: LatentDiffusionModel says what they lack.
    """
    unet = folder / "unet" / "config.json"
    if not unet.is_file():
        return "unet" not in read_config(folder / "model_index.json") and not unet.parent.exists()
    config = read_config(unet)
    added = config.get("addition_embed_type")
    if config.get("_class_name") != "UNet2DConditionModel" or added not in (None, SDXL_CONDITION):
        return True
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        return False
    # EDM's formulation has no betas (Playground v2.5)
    return _scheduler_class(folder).startswith("EDM") or (added == SDXL_CONDITION and _is_sdxl_turbo(folder))


def model_components(unet_config: Config) -> tuple[str, ...]:
    """The folders of a model: what its results depend on."""
    second = ("text_encoder_2", "tokenizer_2") if unet_config.get("addition_embed_type") == SDXL_CONDITION else ()
    return ("unet", "text_encoder", "vae", "scheduler", "tokenizer", *second)


def zeros_for_empty_prompt(folder: Path) -> bool:
    """Whether the model's null condition is zeros (SDXL's base model) rather than the empty prompt's."""
    index = read_json(folder / "model_index.json")
    return isinstance(index, dict) and bool(index.get("force_zeros_for_empty_prompt"))


def pixels_per_latent(vae_config: Config) -> int:
    """Pixels along one side of a latent: 2 to the number of times that the VAE halves an image."""
    return int(2 ** (len(vae_config.get("block_out_channels") or [0]) - 1))


def native_latent_size(unet_config: Config) -> tuple[int, int]:
    """(height, width) of the latents that the UNet was trained on; diffusers' default of 64 where it is not stated."""
    size = unet_config.get("sample_size") or 64
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise RcdeployError(f"unet/config.json: sample_size is {str(size)[:100]}; one or two whole numbers are allowed")
    return sides[0], sides[1]


def latent_shape(unet_config: Config, vae_config: Config, resolution: int | None = None) -> tuple[int, int, int]:
    """[c, h, w] of the latents of square images of `resolution` pixels; None: the UNet's native size.

    Raises RcdeployError when the resolution is not a whole number of latents.
    """
    channels = int(unet_config["in_channels"])
    if resolution is None:
        return channels, *native_latent_size(unet_config)
    pixels = pixels_per_latent(vae_config)
    size, remainder = divmod(resolution, pixels)
    if remainder:
        raise RcdeployError(f"resolution {resolution} is not a multiple of {pixels} pixels")
    return channels, size, size


def size_multiple(unet_config: Config) -> int:
    """Latent heights and widths must be multiples of this: the UNet halves them once per stage but the last."""
    return int(2 ** (len(unet_config["block_out_channels"]) - 1))


def trimmed_model_index(index: Mapping[str, Any], scheduler: str | None = None) -> dict[str, Any]:
    """model_index.json without what students and packages do not carry (safety checker, feature extractor).

    scheduler: diffusers' class of the schedule, in place of the one named there.
    """
    trimmed = {k: v if k.startswith("_") or k in KEPT_IN_INDEX else [None, None] for k, v in index.items()}
    if scheduler is not None:
        trimmed["scheduler"] = ["diffusers", scheduler]
    return {**trimmed, "requires_safety_checker": False}
