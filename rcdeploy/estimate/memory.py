"""Memory of a run on its device, and advice when it is too little."""

from __future__ import annotations

from pathlib import Path

from .plan import Plan

GPU_ALLOWANCE = 1.5
"""what a GPU takes over the tensors alive: context, workspaces of convolutions, fragments. Calibrated: BK-SDM-Base
at 64 samples at once, 53 GB"""
LIBRARIES_BYTES = 520_000_000
"""of a run's process beside its tensors: torch, diffusers, transformers, accelerate. Measured (benchmarks/growth.py)"""

CLIP_BYTES = 5_470_000_000
"""of ViT-g/14's weights, where evaluate.clip is a name on the hub"""


def memory_bytes(plan: Plan, on_gpu: bool) -> dict[str, int]:
    """Bytes of the tensors alive at once, by what they are and by stage.

    "tensors" is the largest of the stages "caching", "training" and "drawing"; "peak" adds libraries or the allowance.
    """
    parameters = plan.parameters
    weights = {
        "teacher": (parameters["teacher"] + parameters["text_encoder"]) * plan.dtype.itemsize,
        "student": 4 * parameters["trained"],
        "optimizer": 8 * parameters["trained"],
        "ema": 4 * parameters["student"] if plan.recipe.train.ema_decay else 0,
    }
    gradients = 4 * parameters["trained"]
    static = sum(weights.values())
    static += 0 if on_gpu else plan.text_cache
    static += gradients if plan.num_processes > 1 else 0  # DDP's buckets are a copy
    step = plan.costs["step"].peak_bytes
    cache_source = "teacher" if plan.recipe.cache.source == "teacher" else "encode"
    student_copy = (2 if on_gpu else 4) * parameters["student"]
    stages = {
        "caching": weights["teacher"] + (0 if on_gpu else weights["student"]) + plan.costs[cache_source].peak_bytes,
        "training": static + max(step, gradients),
        "drawing": static + _drawing_bytes(plan, student_copy) if plan.recipe.evaluate.every else 0,
    }
    largest = max(stages.values())
    peak = largest * GPU_ALLOWANCE if on_gpu else largest + LIBRARIES_BYTES
    return {
        **weights,
        "gradients": gradients,
        "activations": step - gradients,
        **stages,
        "tensors": largest,
        "peak": int(peak),
    }


def _drawing_bytes(plan: Plan, student_copy: int) -> int:
    """What an evaluation has beside the training: VAE, a copy of the student, and activations or, after that, CLIP."""
    sampling = max(plan.costs[name].peak_bytes for name in ("student", "decode"))
    scorer = 0
    if plan.recipe.evaluate.score == "clip":
        files = list(Path(plan.recipe.evaluate.clip or "").glob("model*.safetensors"))
        scorer = sum(file.stat().st_size for file in files) or CLIP_BYTES
    return 4 * plan.parameters["vae"] + student_copy + max(sampling, scorer)


def memory_warnings(plan: Plan, memory: dict[str, int]) -> list[str]:
    """memory: of memory_bytes, and "device", what the device has. -> at most one warning, with what to change."""
    if memory["peak"] <= memory["device"]:
        return []
    certain = memory["tensors"] > memory["device"]
    tensors, peak, available = (memory[key] / 1e9 for key in ("tensors", "peak", "device"))
    changes = []
    largest_stage = max(("training", "caching", "drawing"), key=lambda stage: memory[stage])
    if plan.sizes.micro_batch_size > 1 and largest_stage == "training":
        changes.append(f"train.micro_batch_size below {plan.sizes.micro_batch_size}")
    if not plan.recipe.train.gradient_checkpointing:
        changes.append("train.gradient_checkpointing = true")
    if memory["caching"] == memory["tensors"]:
        changes.append(f"cache.batch_size below {plan.recipe.cache.batch_size}")
    if memory["drawing"] == memory["tensors"]:
        changes.append("fewer evaluate.prompts, or evaluate.every = 0")
    changes.append("a smaller student, or a device with more memory")
    return [
        f"{'Does not fit' if certain else 'May not fit'} in memory: {tensors:.1f} GB of tensors, {peak:.1f} GB with "
        f"libraries and workspace; the device has {available:.0f} GB. Change: {'; '.join(changes)}."
    ]
