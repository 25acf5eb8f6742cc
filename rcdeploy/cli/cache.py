"""rcdeploy cache"""

from __future__ import annotations

from pathlib import Path

import typer

from rcdeploy_runtime.digests import DigestCache

from ..recipe_file import load_recipe
from .console import (
    make_log,
    print_json,
    print_next,
    quieten_libraries,
    resumable,
    short_path,
    show_facts,
    stages,
)
from .options import JSON, QUIET, RECIPE, SET


def cache_command(
    recipe: Path = RECIPE,
    override: list[str] = SET,
    verify: bool = typer.Option(
        False, "--verify", help="Read every file again, also those whose digests are remembered; replace damaged ones."
    ),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Fill the latent cache of a recipe: the teacher's latents for its paired prompts, never decoded.

    Finished shards are kept, so the same command resumes after any interruption, and several machines that share a
    folder may run it at once. On several GPUs: accelerate launch -m rcdeploy.cli.main cache RECIPE.
    """
    resolved = load_recipe(recipe, override)
    from .. import cache_latents
    from ..distill.build_run import load_teacher, make_accelerator
    from ..prompts.recipe_pool import paired_sources

    quieten_libraries()
    quiet = quiet or as_json
    log = make_log(quiet)
    with resumable("Finished shards of latents are kept: run the same command to resume."):
        teacher = load_teacher(resolved.teacher, make_accelerator(resolved.train, Path("runs")))
        digests = DigestCache(remember=not verify)  # a disk may lose bits without changing a file's time
        cache_folder = cache_latents.prepare(resolved, teacher, paired_sources(resolved, log), log, digests)
        folder = cache_folder.folder
        with stages(quiet) as progress:
            cache = cache_latents.fill(cache_folder, resolved.cache, teacher, progress, log)
    facts = {
        "folder": short_path(folder),
        "latents": len(cache),
        "shape": "x".join(map(str, cache.shape)),
        "shards": len(cache.shards),
        "bytes": cache.manifest.size_of(),
    }
    if as_json:
        print_json([{**facts, "folder": str(folder)}])
    elif not quiet:
        show_facts("latent cache", facts)
        print_next(f"next: rcdeploy distill {recipe}")
