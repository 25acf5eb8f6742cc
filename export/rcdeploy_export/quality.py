"""The cost of a smaller precision, measured as it is exported: errors over timesteps, images, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdeploy.condition import Condition, added_shapes, predict
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.clip_score import ClipScore
from rcdeploy.evaluate.judge import Judge
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.sampling_defaults import SamplingDefaults
from rcdeploy_runtime.session_options import SessionOptions
from rcdeploy_runtime.sessions import Session
from rcdeploy_runtime.text_to_image import TextToImage

from .calibration import PIXELS_AT_ONCE

MAX_IMAGES = 32
"""of a comparison whose number of images is not given"""
WARM_UP_TURNS = 2
TIMED_TURNS = 7
"""at most, and at least one"""
MIN_SPEEDUP = 1.05
"""a smaller ratio of times is within what one machine's timings vary"""

OnProgress = Callable[[int, int], None]
"""called with (completed, total)"""


@torch.no_grad()
def error_by_timestep(
    session: Session,
    model: LatentDiffusionModel,
    samples: Sequence[dict[str, Array]],
    budget: float,
    progress: OnProgress,
    ranges: int = 8,
) -> list[dict[str, float]]:
    """Relative error of the UNet by timestep: [{"timestep", "relative_error"}], means over `ranges` of timesteps.

    budget: seconds, for as many samples, evenly spread, as the first one's time allows; for one at least.
    """
    started = time.perf_counter()
    _relative_error(session, model, samples[0])
    each = time.perf_counter() - started
    count = max(1, affordable(budget - each, each, len(samples)))
    chosen = [samples[(2 * i + 1) * len(samples) // (2 * count)] for i in range(count)]  # the middles of equal parts
    errors: list[float] = []
    for number, sample in enumerate(chosen, 1):
        errors.append(_relative_error(session, model, sample))
        progress(number, len(chosen))
    timesteps = [int(sample["timestep"]) for sample in chosen]
    bounds = [i * len(chosen) // ranges for i in range(ranges + 1)]
    return [
        {"timestep": float(np.mean(timesteps[a:b])), "relative_error": float(f"{np.mean(errors[a:b]):.4g}")}
        for a, b in zip(bounds, bounds[1:], strict=False)
        if b > a
    ]


def _relative_error(session: Session, model: LatentDiffusionModel, sample: dict[str, Array]) -> float:
    added = {name: torch.from_numpy(sample[name]) for name in added_shapes(model.unet_config, 1)}
    condition = Condition(torch.from_numpy(sample["encoder_hidden_states"]), added)
    timestep = torch.from_numpy(np.asarray(sample["timestep"])).reshape(1)
    expected = predict(model.unet, torch.from_numpy(sample["sample"]), timestep, condition).numpy()
    output = session.run(dict(sample))
    return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))


def seconds_per_step(
    sessions: dict[str, Session], sample: dict[str, Array], rows: int, budget: float, progress: OnProgress
) -> dict[str, float]:
    """Median seconds of one UNet step by session, in turns, so that other load affects all.

    rows: 2 with guidance. budget: seconds after which no turn is begun, once each session has been timed. The first
    turn compiles and is never timed, the second not either where there is time for others.
    """
    step = {k: np.concatenate([v] * rows) if np.ndim(v) > 1 else v for k, v in sample.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    turns = WARM_UP_TURNS + TIMED_TURNS
    begun = time.perf_counter()
    for turn in range(turns):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(step)
            if turn:
                times[name].append(time.perf_counter() - started)
        is_last = turn > 0 and time.perf_counter() - begun >= budget
        progress(turns if is_last else turn + 1, turns)
        if is_last:
            break
    return {name: float(np.median(t[WARM_UP_TURNS - 1 :] or t)) for name, t in times.items()}


def verdict(seconds: dict[str, float], precision: str) -> str:
    """The measured speed in a sentence."""
    ratio = seconds["fp32"] / seconds[precision]
    if ratio >= MIN_SPEEDUP:
        return f"{ratio:.2f} times as fast as fp32 on this machine"
    return f"not faster than fp32 on this machine ({ratio:.2f} times as fast): it saves bytes, not time"


def affordable(budget: float, seconds_each: float, most: int) -> int:
    """How many of something fit into `budget` seconds, at most `most`."""
    return min(most, int(max(0.0, budget) / seconds_each))


def compare_images(
    folder: Path,
    model: LatentDiffusionModel,
    prompts: Sequence[str],
    precision: str,
    *,
    judge: Path | None,
    clip: Path | None,
    sampling: SamplingDefaults,
    progress: OnProgress,
) -> dict[str, Any]:
    """Images from the same noise by torch in fp32 and by the package: their difference, and a judge's or CLIP's scores.

    Args:
        folder: the package.
        model: the one that it was exported from.
        prompts: one per image.
        precision: of the package, a key of the result.
        judge: the folder of a judge (evaluate/judge.py).
        clip: the folder of a CLIP model (evaluate/clip_score.py).
        sampling: of the images.
        progress: called with (images drawn by both, all).

    Returns:
        {"count", "grey_levels": mean absolute difference of 255, "judge"?: {"fp32": {attribute: share right},
        precision: ...}, "clip_score"?: {"fp32", precision}}.
    """
    package = TextToImage(Package(folder, verify=False), SessionOptions("cpu"))
    settings: dict[str, Any] = dict(vars(sampling))
    size = package.height, package.width
    batch_size = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
    package_images: list[Tensor] = []
    torch_images: list[Tensor] = []
    progress(0, len(prompts))
    for start in range(0, len(prompts), batch_size):
        seeds = range(start, min(start + batch_size, len(prompts)))
        noise = runtime_noise(model, seeds, size)
        batch = [prompts[k] for k in seeds]
        torch_images.append(
            sample_images(model, batch, noise, batch_size=len(batch), decode_batch_size=1, seeds=seeds, **settings)
        )
        for k in seeds:
            image = package.generate(prompts[k], seed=k, **settings)[0][0]
            package_images.append(torch.from_numpy(np.array(image)).movedim(-1, 0) / 255)
            progress(k + 1, len(prompts))
    images = {"fp32": torch.cat(torch_images), precision: torch.stack(package_images)}
    difference = (images["fp32"] - images[precision]).abs().mean().item() * 255
    result: dict[str, Any] = {"count": len(prompts), "grey_levels": float(f"{difference:.4g}")}
    if judge is not None:
        result["judge"] = {name: _shares_right(Judge.load(judge), x, list(prompts)) for name, x in images.items()}
    if clip is not None:
        score = ClipScore(clip)
        result["clip_score"] = {name: round(score(x, prompts).mean().item(), 4) for name, x in images.items()}
    return result


def _shares_right(judge: Judge, images: Tensor, prompts: list[str]) -> dict[str, float]:
    return {name: round(right.float().mean().item(), 4) for name, right in judge.verdicts(images, prompts).items()}
