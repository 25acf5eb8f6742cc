"""Build a UNet from its config: with random weights of a seed, or on the meta device with none at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from rcdeploy_runtime.errors import RcdeployError


def build_student(config: Mapping[str, Any], seed: int) -> UNet2DConditionModel:
    """A UNet on the CPU whose weights are a function of (config, seed) and of nothing else.

    The global random state, of the CPU and of every GPU, is left as it was. Raises RcdeployError if diffusers refuses
    the config.
    """
    # the CPU's generator alone: torch.manual_seed would reseed the GPUs as well
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return _from_config(config)


def build_on_meta(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """The UNet with shapes and no storage, for counting; takes a tenth of a second at any size."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _from_config(config).eval()


def _from_config(config: Mapping[str, Any]) -> UNet2DConditionModel:
    # keys with an underscore state where a config came from (class, version, folder), not what to build
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return UNet2DConditionModel.from_config(arguments)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RcdeployError(
            f"diffusers cannot build a UNet from this config: {error}",
            fix="Check the teacher's unet/config.json; the student's config is made from it.",
        ) from error
