"""What a smaller precision costs and brings, measured as it is exported: errors, pictures, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdeploy.diffusion_model import Condition, LatentDiffusionModel, predict
from rcdeploy.evaluate.clip_score import ClipScore
from rcdeploy.evaluate.judge import Judge
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.sessions import Session
from rcdeploy_runtime.text_to_image import TextToImage

SECONDS = 60.0
"""what may be spent on drawing pictures, when nobody says how many"""
MOST = 32
STEPS, GUIDANCE_SCALE = 25, 7.5
PIXELS = 8 * 64 * 64
"""that torch draws at once: small pictures together take a tenth of the time that they take one by one"""


@torch.no_grad()
def error_by_timestep(
    session: Session, teacher: LatentDiffusionModel, rows: Sequence[dict[str, Array]], parts: int = 8
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


def affordable(seconds: dict[str, float]) -> int:
    """Pictures that fit into SECONDS, each drawn by the package and by torch, which takes about as long as fp32."""
    return min(MOST, int(SECONDS / (STEPS * sum(seconds.values()))))


def compare_pictures(
    folder: Path,
    teacher: LatentDiffusionModel,
    prompts: Sequence[str],
    precision: str,
    *,
    judge: Path | None,
    clip: Path | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The same noise drawn by torch in fp32 and by the package: what differs, and what a judge or CLIP makes of both.

    judge: a folder of evaluate/judge.py's. clip: one that evaluate/clip_score.py takes. Returns {"count",
    "grey_levels": mean absolute difference of 255, "judge"?: {"fp32": {attribute: share right}, precision: ...},
    "clip_score"?: {"fp32", precision}}.
    """
    model = TextToImage(Package(folder, verify=False), "cpu")
    drawn, expected = [], []
    how: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
    size = model.height, model.width
    at_once = max(1, PIXELS // (size[0] * size[1]))
    for start in range(0, len(prompts), at_once):
        progress(start, len(prompts))
        seeds = range(start, min(start + at_once, len(prompts)))
        for k in seeds:
            image = model.generate(prompts[k], seed=k, **how)[0][0]
            drawn.append(torch.from_numpy(np.array(image)).movedim(-1, 0) / 255)
        noise = runtime_noise(teacher, seeds, size)
        batch = [prompts[k] for k in seeds]
        expected.append(sample_images(teacher, batch, noise, batch_size=len(batch), decode_batch_size=1, **how))
    progress(len(prompts), len(prompts))
    both = {"fp32": torch.cat(expected), precision: torch.stack(drawn)}
    difference = (both["fp32"] - both[precision]).abs().mean().item() * 255
    found: dict[str, Any] = {"count": len(prompts), "grey_levels": float(f"{difference:.4g}")}
    if judge is not None:
        found["judge"] = {name: _shares(Judge.load(judge), images, list(prompts)) for name, images in both.items()}
    if clip is not None:
        score = ClipScore(clip)
        found["clip_score"] = {name: round(score(images, prompts).mean().item(), 4) for name, images in both.items()}
    return found


def _shares(judge: Judge, images: Tensor, prompts: list[str]) -> dict[str, float]:
    return {name: round(right.float().mean().item(), 4) for name, right in judge.verdicts(images, prompts).items()}
