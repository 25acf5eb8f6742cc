"""Filling the latent cache: rcdeploy's code against a plain loop over diffusers' pipeline, in turns, in one process.

    python benchmarks/caching.py [--count 64] [--batch 32] [--steps 25] [--turns 5] [--threads N] [--json]

Both sample the same latents of the Fashion teacher (same prompts, noise, batch size, DDIM steps and guidance) and
write them to disk in fp16; the difference between the two caches is printed. Ours is `make_latent_cache` into a new
folder, with all of a cache: prompts, shards, digests, manifest. The plain loop is StableDiffusionPipeline with
output_type="latent" and a file a latent. Read the ratio: other work on the machine affects both alike.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside_plain import ROOT, command, medians_and_ratios, quickstart
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rcdeploy.cache_latents import make_latent_cache, prepare
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.latent_cache import LatentCache
from rcdeploy.machine import gemm_rate
from rcdeploy.prompts.recipe_pool import paired_sources
from rcdeploy.sampling import starting_noise


def ours(folder: Path, teacher: LatentDiffusionModel, settings: dict[str, Any]) -> tuple[LatentCache, float]:
    """-> the cache, and the seconds of the work per cache: all captions are read, deduplicated, sampled."""
    recipe = quickstart({**settings, "cache.folder": str(folder)})
    start = time.perf_counter()
    prepare(recipe, teacher, paired_sources(recipe))
    prepare_seconds = time.perf_counter() - start
    return make_latent_cache(recipe, teacher), prepare_seconds


def plain(folder: Path, pipe: Any, prompts: list[str], noise: torch.Tensor, batch_size: int, steps: int) -> None:
    folder.mkdir()
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        latents = pipe(
            prompts[rows],
            latents=noise[rows].to(pipe.dtype),
            num_inference_steps=steps,
            guidance_scale=4.0,
            output_type="latent",
        ).images
        for i, latent in enumerate(latents, start):
            np.save(folder / f"{i}.npy", latent.half().cpu().numpy())


def measure(count: int = 64, batch: int = 32, steps: int = 25, turns: int = 5) -> dict[str, Any]:
    """count: latents. steps: of DDIM. turns: caches of each."""
    with tempfile.TemporaryDirectory(prefix="rcdeploy-caching-") as name, contextlib.chdir(name):
        settings = {"prompts.paired_count": count, "cache.batch_size": batch, "cache.num_inference_steps": steps}
        teacher = LatentDiffusionModel(str(ROOT / "examples/teachers/fashion"))
        pipe = StableDiffusionPipeline.from_pretrained(teacher.folder, dtype=torch.float32)
        pipe.scheduler = DDIMScheduler.from_config(teacher.schedule.config)
        pipe.set_progress_bar_config(disable=True)
        cache, _ = ours(Path("warm"), teacher, settings)  # and the plain loop's prompts
        prompts = cache.prompts.take(range(count))
        noise = starting_noise(0, range(count), cache.shape)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            plain(Path("plain"), pipe, prompts, noise, batch, steps)
        plain_latents = torch.stack([torch.from_numpy(np.load(f"plain/{i}.npy")).float() for i in range(count)])
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        preparing = []
        for turn in range(turns):
            ours_start = time.perf_counter()
            preparing.append(ours(Path(f"ours-{turn}"), teacher, settings)[1])
            plain_start = time.perf_counter()
            plain(Path(f"plain-{turn}"), pipe, prompts, noise, batch, steps)
            seconds["plain"].append(time.perf_counter() - plain_start)
            seconds["ours"].append(plain_start - ours_start)
        written = {name: sum(f.stat().st_size for f in Path(f"{name}-0").rglob("*") if f.is_file()) for name in seconds}
        difference = float((cache.latents(range(count)) - plain_latents).abs().max())
    return {
        "settings": {
            "count": count,
            "batch": batch,
            "num_inference_steps": steps,
            "threads": torch.get_num_threads(),
        },
        "seconds": seconds,
        "preparing_seconds": preparing,
        "bytes_written": written,
        "max_abs_difference": difference,
        "macs": counter.get_total_flops() // 2,
        "gemm_macs_per_second": gemm_rate(),
    }


def markdown(result: dict[str, Any]) -> str:
    s = result["settings"]
    rate = result["gemm_macs_per_second"]
    median, ratios = medians_and_ratios(result["seconds"])
    lines = [
        f"{s['count']} latents of the Fashion teacher, {s['num_inference_steps']} DDIM steps with guidance, batch "
        f"{s['batch']}, {s['threads']} threads, {len(ratios)} turns",
        "",
        "| | s a cache (median) | spread | latents a second | of the GEMM rate | KB written a latent |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in result["seconds"].items():
        lines.append(
            f"| {name} | {median[name]:.3f} | {min(times):.3f} to {max(times):.3f} | {s['count'] / median[name]:.1f} | "
            f"{result['macs'] / median[name] / rate:.0%} | {result['bytes_written'][name] / s['count'] / 1e3:.2f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Plain / ours: {median['plain'] / median['ours']:.3f} (turns {ratios[0]:.3f} to {ratios[-1]:.3f}). Of "
            f"ours {statistics.median(result['preparing_seconds']):.3f} s are spent once per cache, whatever its size: "
            "all captions are read, deduplicated and sampled, which the plain loop skips. "
            f"{result['macs'] / 1e9:.1f} GMACs (counted in the plain loop), {result['macs'] / rate:.2f} s at this "
            f"machine's {rate / 1e9:.1f} GMAC/s of fp32 products. Largest difference between the two caches: "
            f"{result['max_abs_difference']:.1e}.",
        ]
    )


if __name__ == "__main__":
    command(__doc__, measure, markdown)
