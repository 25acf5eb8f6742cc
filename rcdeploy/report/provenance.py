"""Where a student comes from, in sentences for a card: recipe, random conditioning, data, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcdeploy_runtime.manifest import Manifest

from ..recipe_student import Student
from .publication import Publication


def student_name(manifest: Manifest) -> str:
    label = Student(**manifest.recipe["student"]).label
    return f"of {label}" if label.startswith("width") else label


def random_conditioning(manifest: Manifest) -> str:
    """p(t) as a short text; empty without random conditioning."""
    section = manifest.recipe["conditioning"]
    texts = {
        "sigmoid": f"a sigmoid of steepness {section['steepness']:g} around t/T = {section['centre']:g}",
        "exponential": f"exponential, lambda {section['rate']:g}",
        "mirrored-exponential": f"mirrored exponential, lambda {section['rate']:g}",
        "constant": f"{section['constant']:g}",
        "linear": "t/T",
        "none": "",
    }
    return texts[section["probability"]]


def provenance(publication: Publication) -> list[str]:
    """Sentences on recipe, data and prompts. Files by their names alone: the folders of this machine stay private."""
    recipe = publication.manifest.recipe
    if not recipe:
        return ["No distillation: the networks are those of that model, exported."]
    return [
        _recipe_sentence(publication),
        _conditioning_sentence(publication),
        f"Data: {_latents_text(recipe['cache'])}. For the teacher's own training data see the teacher's card.",
        _prompts_sentence(recipe["prompts"]),
    ]


def _recipe_sentence(publication: Publication) -> str:
    recipe = publication.manifest.recipe
    train = recipe["train"]
    run = publication.run
    steps = run.facts.get("steps") if run else train["max_steps"]
    loss_weights = ", ".join(f"{name} {weight:g}" for name, weight in recipe["loss"].items() if weight)
    initial_weights = Student(**recipe["student"]).first_weights
    return (
        f"Recipe: `{recipe['name']}`; student {student_name(publication.manifest)}, initial weights {initial_weights}, "
        f"{steps:,} steps of {train['global_batch_size']} samples, learning rate {train['learning_rate']:g} "
        f"({train['lr_schedule']}), EMA {train['ema_decay']:g}, seed {train['seed']}; loss weights: {loss_weights}."
    )


def _conditioning_sentence(publication: Publication) -> str:
    p = random_conditioning(publication.manifest)
    pool_size = _pool_size(publication.run)
    null_probability = publication.manifest.recipe["conditioning"]["null_probability"]
    return (
        (f"Random conditioning: p(t) is {p}" if p else "Random conditioning: none")
        + f"; the null condition with probability {null_probability:g}"
        + (f"; prompt pool of {pool_size:,} prompts." if pool_size else ".")
    )


def _latents_text(cache: dict[str, Any]) -> str:
    if cache["source"] != "teacher":
        return 'real images were used for the latents (`cache.source = "real"`)'
    sampling = f"{cache['num_inference_steps']} DDIM steps, guidance {cache['guidance_scale']:g}"
    return f"no real image was used in the distillation; the latents are the teacher's own ({sampling})"


def _prompts_sentence(prompts: dict[str, Any]) -> str:
    paired = f"{prompts['paired_count']:,}" if prompts.get("paired_count") else "all"
    excluded = f", without those that match {', '.join(prompts['paired_exclude'])}" if prompts["paired_exclude"] else ""
    pool = ", ".join(f"`{Path(file).name}`" for file in prompts["pool"])
    return (
        f"Prompts with a latent: {paired} of {', '.join(f'`{Path(file).name}`' for file in prompts['paired'])}"
        f"{excluded}. Further prompts: {pool or 'none'}."
    )


def _pool_size(run: Manifest | None) -> int | None:
    """Prompts in the pool of the run, if the pool is still where it was."""
    from ..prompts.recipe_pool import find_pool

    if run is None:
        return None
    digest = {origin["kind"]: origin["sha256"] for origin in run.made_from}.get("prompt_pool")
    pool = find_pool(digest, run.recipe["prompts"]["pool"], [Path()])
    if pool is None:
        return None
    with pool:
        return len(pool)
