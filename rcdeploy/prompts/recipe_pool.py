"""The pool C of a recipe: its extra prompts and its paired ones in one prompt pool, built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import remove_new
from rcdeploy_runtime.manifest import NAME

from ..claims import Claim
from ..recipe import Recipe, digest
from .pool import PromptPool, build_pool
from .readers import files_of


def open_pool(recipe: Recipe, tell: Callable[[str], None] = lambda _text: None) -> PromptPool:
    """prompts.pool naming one built pool is used as it is; files are built into pools/NAME-DIGEST with the paired ones.

    Without prompts.pool, C is the paired prompts alone.
    """
    extra = [Path(p) for p in recipe.prompts.pool]
    if len(extra) == 1 and (extra[0] / NAME).is_file():
        return PromptPool.open(extra[0])
    files = [*extra, *(Path(p) for p in recipe.prompts.paired)]
    files = list(dict.fromkeys(files))
    for file in files:
        if (file / NAME).is_file():
            raise RcdeployError(f"{file} is a built pool: it must be the only entry of prompts.pool")
    known = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for source in files for f in files_of(source)]
    # without extra text, C is what the paired prompts are after their filter
    exclude = [] if extra else recipe.prompts.paired_exclude
    folder = Path("pools") / f"{files[0].name.split('.')[0]}-{digest([known, recipe.prompts.column, exclude])[:8]}"
    claim, new = Claim(folder.with_name(folder.name + ".build")), [p for p in (folder, folder.parent) if not p.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    while not (folder / NAME).is_file():
        if claim.take():
            try:
                tell(f"building the prompt pool {folder}")
                build_pool(files, folder, column=recipe.prompts.column, exclude=exclude)
            except BaseException:
                claim.release()
                remove_new(new)
                raise
            claim.release()
    return PromptPool.open(folder)
