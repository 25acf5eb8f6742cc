"""Build a UNet from its config, parts of ours included: with random weights of a seed, on the meta device, or from a
folder that diffusers alone may not open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from rcdeploy_runtime.errors import RcdeployError

from ..model_config import OWN_KEYS, has_wavelet_gating, read_config
from .wavelet import put_in_wavelet_gating

_WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")


def build_student(config: Mapping[str, Any], seed: int) -> UNet2DConditionModel:
    """A UNet on the CPU whose weights are a function of (config, seed) and of nothing else.

    The global random state, of the CPU and of every GPU, is left as it was. Raises RcdeployError if diffusers refuses
    the config.
    """
    # the CPU's generator alone: torch.manual_seed would reseed the GPUs as well
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return unet_from_config(config)


def build_on_meta(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """The UNet with shapes and no storage, for counting; takes a tenth of a second at any size."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return unet_from_config(config).eval()


def unet_from_config(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """The UNet of a config, with weights of the global random state. Raises RcdeployError if it cannot be built."""
    # keys with an underscore state where a config came from (class, version, folder), not what to build
    arguments = {key: value for key, value in config.items() if not key.startswith(("_", OWN_KEYS))}
    gating = has_wavelet_gating(config)
    try:
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(arguments)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RcdeployError(
            f"diffusers cannot build a UNet from this config: {error}",
            fix="Check the teacher's unet/config.json; the student's config is made from it.",
        ) from error
    if gating:
        put_in_wavelet_gating(unet)
    return unet


def load_unet(folder: Path | str, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """A UNet from its folder, parts of ours included, in evaluation mode; diffusers' pipelines take it as `unet=`.

    Raises RcdeployError for a config that cannot be built, and for weights that do not fit it.
    """
    unet, info = load_unet_with_info(Path(folder))
    if problems := [key for keys in info.values() for key in keys]:
        raise RcdeployError(f"the weights in {folder} do not fit its config.json: {problems[0]}", fix="Copy it again.")
    return unet.to(dtype).eval()


def load_unet_with_info(folder: Path) -> tuple[UNet2DConditionModel, dict[str, list[Any]]]:
    """A UNet in fp32 and diffusers' loading info: missing_keys, unexpected_keys, mismatched_keys (name, actual shape,
    expected shape). If any of these has an entry, the UNet is of no use.
    """
    config = read_config(folder / "config.json")
    if not has_wavelet_gating(config, str(folder / "config.json")):
        return UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    with init_empty_weights(include_buffers=False):
        unet = unet_from_config(config)
    expected = unet.state_dict()
    actual = {k: v for f in sorted(folder.iterdir()) if _WEIGHTS.fullmatch(f.name) for k, v in load_file(f).items()}
    info = {
        "missing_keys": sorted(expected.keys() - actual.keys()),
        "unexpected_keys": sorted(actual.keys() - expected.keys()),
        "mismatched_keys": [
            (key, actual[key].shape, expected[key].shape)
            for key in sorted(expected.keys() & actual.keys())
            if actual[key].shape != expected[key].shape
        ],
    }
    if not any(info.values()):
        unet.load_state_dict({key: value.float() for key, value in actual.items()}, assign=True)
    return unet, info
