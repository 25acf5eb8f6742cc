"""Where a student comes from, in sentences for a card: recipe, random conditioning, data, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcdeploy_runtime.manifest import Manifest

from .publication import Publication, run_of


def student_name(manifest: Manifest) -> str:
    student = manifest.recipe["student"]
    return f"of width {student['width']}" if student.get("width") else str(student["name"])


def random_conditioning(manifest: Manifest) -> str:
    """p(t) in words; empty without random conditioning."""
    c = manifest.recipe["conditioning"]
    shape = {
        "sigmoid": f"a sigmoid of steepness {c['steepness']:g} around t/T = {c['centre']:g}",
        "exponential": f"exponential, lambda {c['rate']:g}",
        "mirrored-exponential": f"mirrored exponential, lambda {c['rate']:g}",
        "constant": f"{c['constant']:g}",
        "linear": "t/T",
        "none": "",
    }
    return shape[c["probability"]]


def provenance(found: Publication) -> list[str]:
    """Sentences on recipe, data and prompts. Files by their names alone: their folders are nobody's business."""
    manifest, recipe = found.manifest, found.manifest.recipe
    if not recipe:
        return ["No distillation: the networks are the ones of that model, exported."]
    student, train, cache, prompts = (recipe[k] for k in ("student", "train", "cache", "prompts"))
    run = run_of(found)
    steps = run.facts.get("steps") if run else train["max_steps"]
    loss = ", ".join(f"{name} {weight:g}" for name, weight in recipe["loss"].items() if weight)
    p = random_conditioning(manifest)
    pool = _pool_size(run)
    further = ", ".join(f"`{Path(f).name}`" for f in prompts["pool"])
    paired = f"{prompts['paired_count']:,}" if prompts.get("paired_count") else "all"
    excluded = f", without those that hold {', '.join(prompts['paired_exclude'])}" if prompts["paired_exclude"] else ""
    sampled = f"{cache['num_inference_steps']} DDIM steps, guidance {cache['guidance_scale']:g}"
    made = (
        f"no real picture was used in the distillation; the latents are the teacher's own ({sampled})"
        if cache["source"] == "teacher"
        else 'real pictures were used for the latents (`cache.source = "real"`)'
    )
    return [
        f"Recipe: `{recipe['name']}`; student {student_name(manifest)}, first weights {_first_weights(student)}, "
        f"{steps:,} steps of {train['global_batch_size']} samples, learning rate {train['learning_rate']:g} "
        f"({train['lr_schedule']}), EMA {train['ema_decay']:g}, seed {train['seed']}; loss weights: {loss}.",
        (f"Random conditioning: p(t) is {p}" if p else "Random conditioning: none")
        + f"; the null condition with probability {recipe['conditioning']['null_probability']:g}"
        + (f"; prompt pool of {pool:,} texts." if pool else "."),
        f"Data: {made}. What the teacher was trained on is for the teacher's card to say.",
        f"Prompts with a latent: {paired} of {', '.join(f'`{Path(f).name}`' for f in prompts['paired'])}{excluded}. "
        f"Further texts: {further or 'none'}.",
    ]


def _first_weights(student: dict[str, Any]) -> str:
    from ..recipe import Student

    return Student(**student).first_weights


def _pool_size(run: Manifest | None) -> int | None:
    """Prompts in the pool that the run drew from, if the pool is still where it was."""
    from ..prompts.recipe_pool import find_pool

    if run is None:
        return None
    wanted = {m["kind"]: m["sha256"] for m in run.made_from}.get("prompt_pool")
    pool = find_pool(wanted, run.recipe["prompts"]["pool"], [Path()])
    if pool is None:
        return None
    with pool:
        return len(pool)
