"""Smaller numbers: int8 by the method that pays on each target, calibrated from the run's own latents and prompts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.latent_cache import LatentCache
from rcdeploy.prompts.readers import batches, files_of
from rcdeploy.random_streams import CALIBRATION
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy_runtime.manifest import NAME
from rcdeploy_runtime.noise_schedule import Array

from .source import Source

PROMPTS = ["", "a photo", "a picture of a thing on a background", "an object in front of a wall"]
"""when nothing better is known: a diffusers folder that did not come from a run"""


def representative_prompts(source: Source, file: Path | None, count: int) -> list[str]:
    """`count` prompts that the model is used with: of `file`, or of the run's own paired ones; else plain ones."""
    if file is not None:
        known = list(itertools.chain.from_iterable(itertools.islice(batches(files_of(file)), 4)))
    else:
        cache = _cache(source)
        known = list(cache.prompts) if cache else PROMPTS
    if len(known) < count:
        known = [known[i % len(known)] for i in range(count)]
    return [known[i * len(known) // count] for i in range(count)]


def calibration_inputs(
    source: Source, teacher: LatentDiffusionModel, file: Path | None, count: int = 32
) -> list[dict[str, Array]]:
    """UNet inputs, one row each, at timesteps evenly over all of them: noised latents with their prompts.

    Latents and prompts of the run's own cache where it is still there, else latents that this model draws itself, of
    the captions in `file` when it is given.
    """
    cache = _cache(source) if file is None else None
    if cache:
        rows = [i * len(cache) // count for i in range(count)]
        x_0, prompts = cache.latents(rows), [cache.prompts[i] for i in rows]
    else:
        prompts = representative_prompts(source, file, 8)
        x_0 = sample_latents(
            teacher.unet,
            teacher.schedule,
            starting_noise(1, range(len(prompts)), teacher.latent_shape(), CALIBRATION),
            teacher.encode_prompts(prompts),
            teacher.encode_prompts([""]),
            num_inference_steps=10,
        )
        picks = [i % len(prompts) for i in range(count)]
        x_0, prompts = x_0[picks], [prompts[i] for i in picks]
    T = int(teacher.schedule.config.num_train_timesteps)
    timesteps = torch.arange(count) * T // count
    noise = starting_noise(1, range(count), tuple(x_0.shape[1:]), CALIBRATION)
    noisy = teacher.schedule.add_noise(x_0, noise, timesteps)
    embeds = teacher.encode_prompts(prompts).prompt_embeds.float()
    return [
        {
            "sample": noisy[i : i + 1].numpy(),
            "timestep": timesteps[i].numpy(),
            "encoder_hidden_states": embeds[i : i + 1].numpy(),
        }
        for i in range(count)
    ]


def _cache(source: Source) -> LatentCache | None:
    folder = (source.run.facts.get("cache_folder") if source.run else None) or ""
    return LatentCache.open(Path(folder)) if folder and (Path(folder) / NAME).is_file() else None


def quantise_onnx(file: Path, precision: str, target: str, calibration: Sequence[dict[str, Array]]) -> None:
    """Replaces an fp32 ONNX file (opset 20) by its int8 form.

    onnx, int8: weights and activations of matrix products and convolutions, activations scaled as they come. onnx,
    mixed: matrix products alone. trt, int8: symmetric Q/DQ pairs with fixed scales, which TensorRT fuses.
    """
    from onnxruntime import quantization as q

    beside = file.with_name("quantised.onnx")
    if target == "trt":
        q.quantize_static(
            file,
            beside,
            _Reader(calibration),
            quant_format=q.QuantFormat.QDQ,
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Conv", "Gemm"],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    else:
        whole = precision == "int8" and bool(calibration)  # of the UNet; a text encoder has no convolutions
        q.quantize_dynamic(
            file,
            beside,
            op_types_to_quantize=["MatMul", "Conv"] if whole else ["MatMul"],
            per_channel=True,
            weight_type=q.QuantType.QUInt8 if whole else q.QuantType.QInt8,
        )
    beside.replace(file)


class _Reader:
    """What onnxruntime.quantization reads calibration data from."""

    def __init__(self, rows: Sequence[dict[str, Array]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)
