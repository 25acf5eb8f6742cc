"""Smaller numbers: int8 by the method that pays on each target, calibrated from the run's own latents and prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rcdeploy.conditioning import generator
from rcdeploy.latent_cache import LatentCache
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy.teacher import Condition, Teacher, predict
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.sessions import Session

from .source import Source

STREAM = 77
"""of the noises drawn here, apart from those of training"""
PROMPTS = ["", "a photo", "a picture of a thing on a background", "an object in front of a wall"]
"""when nothing better is known: a diffusers folder that did not come from a run"""


def calibration_inputs(source: Source, teacher: Teacher, count: int = 32) -> list[dict[str, Array]]:
    """UNet inputs, one row each, at timesteps evenly over all of them: noised latents with their prompts.

    Latents and prompts of the run's own cache where it is still there, else latents that this model draws itself.
    """
    x_0, prompts = _latents(source, teacher, count)
    T = int(teacher.schedule.config.num_train_timesteps)
    timesteps = torch.arange(count) * T // count
    noise = torch.from_numpy(
        np.stack([generator(1, STREAM, i).standard_normal(x_0.shape[1:], np.float32) for i in range(count)])
    )
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


def _latents(source: Source, teacher: Teacher, count: int) -> tuple[torch.Tensor, list[str]]:
    folder = (source.run.facts.get("cache_folder") if source.run else None) or ""
    if folder and (Path(folder) / "manifest.json").is_file():
        cache = LatentCache.open(Path(folder))
        rows = [i * len(cache) // count for i in range(count)]
        return cache.latents(rows), [cache.prompts[i] for i in rows]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(min(count, 8))]
    latents = sample_latents(
        teacher.unet,
        teacher.schedule,
        starting_noise(1, range(len(prompts)), teacher.latent_shape(), STREAM),
        teacher.encode_prompts(prompts),
        teacher.encode_prompts([""]),
        num_inference_steps=10,
    )
    picks = [i % len(prompts) for i in range(count)]
    return latents[picks], [prompts[i] for i in picks]


def quantise_onnx(file: Path, precision: str, target: str, calibration: Sequence[dict[str, Array]]) -> None:
    """Replaces an fp32 ONNX file (opset 20) by its int8 form.

    onnx, int8: weights and activations of matrix products and convolutions, activations scaled as they come. onnx,
    mixed: matrix products alone. trt, int8: symmetric Q/DQ pairs with fixed scales, which TensorRT fuses.
    """
    from onnxruntime import quantization as q

    beside = file.with_name("quantised.onnx")
    if target == "trt":
        if not calibration:
            return  # the text encoder stays as it is: it runs once a picture
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


@torch.no_grad()
def quality(
    session: Session, teacher: Teacher, rows: Sequence[dict[str, Array]], parts: int = 8
) -> list[dict[str, float]]:
    """Relative error of the UNet by timestep: [{"timestep", "relative_error"}], means over `parts` ranges."""
    errors, steps = [], []
    for row in rows:
        condition = Condition(torch.from_numpy(row["encoder_hidden_states"]))
        t = torch.from_numpy(np.asarray(row["timestep"])).reshape(1)
        expected = predict(teacher.unet, torch.from_numpy(row["sample"]), t, condition).numpy()
        got = session.run(dict(row))
        errors.append(float(np.linalg.norm(got - expected) / np.linalg.norm(expected)))
        steps.append(int(t))
    bounds = [i * len(rows) // parts for i in range(parts + 1)]
    return [
        {"timestep": float(np.mean(steps[a:b])), "relative_error": float(f"{np.mean(errors[a:b]):.4g}")}
        for a, b in zip(bounds, bounds[1:], strict=False)
        if b > a
    ]


def seconds_per_step(sessions: dict[str, Session], row: dict[str, Array], repeats: int = 7) -> dict[str, float]:
    """Median seconds of one guided UNet step (two rows) by each session, in turns, so that noise meets all alike."""
    two = {k: np.concatenate([v, v]) if np.ndim(v) > 1 else v for k, v in row.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(repeats + 2):
        for name, session in sessions.items():
            begun = time.perf_counter()
            session.run(two)
            if turn >= 2:  # the first ones warm up
                times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(t)) for name, t in times.items()}


def verdict(seconds: dict[str, float], precision: str) -> str:
    """What the measured times say, in words."""
    ratio = seconds["fp32"] / seconds[precision]
    if ratio >= 1.05:
        return f"{ratio:.2f} times as fast as fp32 on this machine"
    return f"not faster than fp32 on this machine ({ratio:.2f} times as fast): it saves bytes, not time"
