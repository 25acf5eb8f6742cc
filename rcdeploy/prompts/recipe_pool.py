"""The prompts of a recipe: its files (made from nouns for the entry "wordnet") and the pool C, built once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import NAME

from ..progress import Log, no_log
from ..recipe import WORDNET, Recipe, digest
from ..storage.claims import Claim, Waiting, make_once
from . import templates
from .filters import PoolOptions
from .generate import balanced, from_templates, write_lines
from .nouns import Noun, shipped_digests, visual_by_kind, wordnet_nouns
from .pool import PromptPool, open_whole
from .pool_builder import build_pool
from .readers import files_of
from .wordnet import FILES, find_wordnet

TEMPLATE_SEED = 0


def paired_sources(recipe: Recipe, log: Log = no_log) -> list[Path]:
    """Files of prompts.paired; "wordnet" becomes a file of prompts.paired_count prompts (all without it), balanced."""
    count = recipe.prompts.paired_count
    return [_source(recipe, entry, count, log) for entry in recipe.prompts.paired]


def pool_sources(recipe: Recipe, log: Log = no_log) -> list[Path]:
    """Files of prompts.pool; "wordnet" becomes a file of prompts.per_noun prompts for each noun."""
    return [_source(recipe, entry, None, log) for entry in recipe.prompts.pool]


def visual_nouns() -> list[Noun]:
    """The nouns that the entry "wordnet" stands for."""
    return visual_by_kind(wordnet_nouns())


def wordnet_file(recipe: Recipe, count: int | None) -> Path:
    """pools/wordnet-DIGEST.txt, whether it exists or not.

    Plain text, and named after the files of WordNet that the nouns come from: name and bytes are part of a latent
    cache's identity. Earlier versions took the nouns of the WordNet that is installed, so that a file made of another
    one is still used where it exists.
    """

    def path(wordnet_digests: list[str]) -> Path:
        identity = [wordnet_digests, templates.VERSION, recipe.prompts.per_noun]
        sample = [] if count is None else [count, recipe.cache.seed]
        return Path("pools") / f"{WORDNET}-{digest([identity, sample])[:8]}.txt"

    file = path(shipped_digests())
    if not file.is_file() and any(Path("pools").glob(f"{WORDNET}-*.txt")):
        try:
            installed = find_wordnet()
        except RcdeployError:
            return file
        earlier = path([sha256(installed / name) for name in FILES])
        if earlier.is_file():
            return earlier
    return file


def _source(recipe: Recipe, entry: str, count: int | None, log: Log) -> Path:
    """The file of an entry; count: prompts to make for "wordnet", all if None."""
    if entry != WORDNET:
        return Path(entry)
    file = wordnet_file(recipe, count)

    def make() -> None:
        log(f"making prompts from WordNet's nouns: {file}")
        nouns = visual_nouns()
        prompts_of = from_templates(recipe.prompts.per_noun, TEMPLATE_SEED)
        if count is None:
            write_lines(file, (prompt for noun in nouns for prompt in prompts_of(noun)))
        else:
            counts = [recipe.prompts.per_noun] * len(nouns)
            write_lines(file, balanced(nouns, prompts_of, counts, count, recipe.cache.seed))

    make_once(make, file, _claim(file), (file, file.parent), log)
    return file


def _claim(path: Path) -> Claim:
    return Claim(path.with_name(path.name + ".build"))


def open_pool(recipe: Recipe, log: Log = no_log) -> PromptPool:
    """Opens the pool C of a recipe: a built pool that prompts.pool names, or pools/NAME-DIGEST, built once from files.

    The built one holds the paired prompts too; without prompts.pool, C is the paired prompts alone. When its contents
    have changed it is built again. Raises RcdeployError for a named pool whose contents have changed.
    """
    extra = pool_sources(recipe, log)
    if len(extra) == 1 and (extra[0] / NAME).is_file():
        return open_whole(extra[0])
    files = list(dict.fromkeys([*extra, *paired_sources(recipe, log)]))
    for file in files:
        if (file / NAME).is_file():
            raise RcdeployError(f"{file} is a built pool: it must be the only entry of prompts.pool")
    identity = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for source in files for f in files_of(source)]
    # without extra text, C is what the paired prompts are after their filter
    exclude = [] if extra else recipe.prompts.paired_exclude
    folder = Path("pools") / f"{files[0].name.split('.')[0]}-{digest([identity, recipe.prompts.column, exclude])[:8]}"

    def make() -> None:
        log(f"building the prompt pool {folder}")
        build_pool(files, folder, PoolOptions(column=recipe.prompts.column, exclude=tuple(exclude)))

    def build() -> PromptPool:
        make_once(make, folder / NAME, _claim(folder), (folder, folder.parent), log)
        return open_whole(folder)

    try:
        return build()
    except RcdeployError as error:
        if not (folder / NAME).is_file():
            raise  # it could not be built
        log(f"{error.message}; it is built again")
    _remove_damaged(folder, log)
    return build()


def _remove_damaged(folder: Path, log: Log) -> None:
    """Removes a pool that was built from files, unless another process has done so and built it again meanwhile."""
    claim, waiting = _claim(folder), Waiting(log)
    while not claim.take():
        waiting.wait(claim, folder)
    try:
        open_whole(folder).close()
    except RcdeployError:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        claim.release()


def find_pool(
    pool_digest: str | None, folders: Iterable[str | Path] = (), roots: Iterable[Path] = ()
) -> PromptPool | None:
    """Opens the pool of that digest among `folders` and below pools/ of the `roots`; None when none has it.

    Folders that hold no pool, or a damaged one, are passed over. The caller closes the pool.
    """
    candidates = [Path(folder) for folder in folders]
    for root in dict.fromkeys(roots):
        candidates += sorted((root / "pools").glob("*"))
    for folder in candidates if pool_digest else []:
        try:
            pool = PromptPool.open(folder)
        except RcdeployError:
            continue  # another run's business
        if pool.digest == pool_digest:
            return pool
        pool.close()
    return None
