"""rcdeploy cache"""

from __future__ import annotations

from pathlib import Path

import typer

from ..recipe_file import load_recipe
from .console import err, quieten_libraries, show_table, stages
from .options import QUIET, RECIPE, SET


def cache_command(
    recipe: Path = RECIPE,
    override: list[str] = SET,
    verify: bool = typer.Option(False, "--verify", help="Compare every file with its digest; remake broken ones."),
    as_json: bool = typer.Option(False, "--json", help="Say what the cache holds as JSON."),
    quiet: bool = QUIET,
) -> None:
    """Fill the latent cache of a recipe: the teacher's latents for its paired prompts, never decoded.

    Whole shards are kept, so the same command goes on after any interruption, and several machines that see one folder
    may run it at once. On several GPUs: accelerate launch -m rcdeploy.cli.main cache RECIPE.
    """
    resolved = load_recipe(recipe, override)
    from .. import cache_latents
    from ..distill.run import load_teacher, make_accelerator
    from ..prompts.recipe_pool import paired_sources

    quieten_libraries()
    teacher = load_teacher(resolved.teacher, make_accelerator(resolved.train, Path("runs")))
    log = (lambda _text: None) if quiet or as_json else (lambda text: err.print(text, style="dim"))
    cache_folder = cache_latents.prepare(resolved, teacher, paired_sources(resolved, log), log)
    folder = cache_folder.folder
    if verify:
        for name in cache_folder.manifest.wrong_files(folder):
            (folder / name).unlink(missing_ok=True)
            err.print(f"{folder / name} differs from its digest: made anew", style="yellow")
    with stages(quiet or as_json) as progress:
        cache = cache_latents.fill(cache_folder, resolved.cache, teacher, progress, log)
    row = {
        "folder": str(folder),
        "latents": len(cache),
        "shape": "x".join(map(str, cache.shape)),
        "shards": len(cache.shards),
        "bytes": cache.manifest.size_of(),
    }
    if not quiet:
        show_table("latent cache", list(row), [row], as_json=as_json)
