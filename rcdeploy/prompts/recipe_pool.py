"""What a recipe's [prompts] mean: files of prompts (made where it says "wordnet"), and the pool C, built once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import NAME

from ..claims import Claim, make_once
from ..recipe import Recipe, digest
from . import templates
from .generate import balanced, from_templates, write_lines
from .nouns import Noun, visual_by_kind, wordnet_nouns
from .pool import PromptPool, build_pool
from .readers import files_of
from .wordnet import ENTRY, FILES, WordNet, find_wordnet

Tell = Callable[[str], None]
TEMPLATE_SEED = 0


def _silent(_text: str) -> None:
    """When nobody wants to know."""


def paired_sources(recipe: Recipe, tell: Tell = _silent) -> list[Path]:
    """prompts.paired; "wordnet" becomes a file of prompts.paired_count prompts (all without it), balanced."""
    wanted = recipe.prompts
    return [
        _from_wordnet(recipe, wanted.paired_count, tell) if entry == ENTRY else Path(entry) for entry in wanted.paired
    ]


def pool_sources(recipe: Recipe, tell: Tell = _silent) -> list[Path]:
    """prompts.pool; "wordnet" becomes a file of prompts.per_noun prompts for each noun."""
    return [_from_wordnet(recipe, None, tell) if entry == ENTRY else Path(entry) for entry in recipe.prompts.pool]


def visual_nouns() -> list[Noun]:
    """The nouns that "wordnet" stands for. Raises RcdeployError when WordNet is not installed."""
    return visual_by_kind(wordnet_nouns(WordNet.open()))


def wordnet_file(recipe: Recipe, count: int | None) -> Path:
    """pools/wordnet-DIGEST.txt, there or not. Plain text: its bytes are part of what a latent cache is known by."""
    folder = find_wordnet()
    known = [[sha256(folder / name) for name in FILES], templates.VERSION, recipe.prompts.per_noun]
    drawn = [] if count is None else [count, recipe.cache.seed]
    return Path("pools") / f"{ENTRY}-{digest([known, drawn])[:8]}.txt"


def _from_wordnet(recipe: Recipe, count: int | None, tell: Tell) -> Path:
    file = wordnet_file(recipe, count)

    def make() -> None:
        tell(f"making prompts from WordNet's nouns: {file}")
        nouns, prompts_of = visual_nouns(), from_templates(recipe.prompts.per_noun, TEMPLATE_SEED)
        if count is None:
            write_lines(file, (prompt for noun in nouns for prompt in prompts_of(noun)))
        else:
            counts = [recipe.prompts.per_noun] * len(nouns)
            write_lines(file, balanced(nouns, prompts_of, counts, count, recipe.cache.seed))

    make_once(make, file, _claim(file), (file, file.parent))
    return file


def _claim(made: Path) -> Claim:
    return Claim(made.with_name(made.name + ".build"))


def open_pool(recipe: Recipe, tell: Tell = _silent) -> PromptPool:
    """prompts.pool naming one built pool is used as it is; files are built into pools/NAME-DIGEST with the paired ones.

    Without prompts.pool, C is the paired prompts alone.
    """
    extra = pool_sources(recipe, tell)
    if len(extra) == 1 and (extra[0] / NAME).is_file():
        return PromptPool.open(extra[0])
    files = list(dict.fromkeys([*extra, *paired_sources(recipe, tell)]))
    for file in files:
        if (file / NAME).is_file():
            raise RcdeployError(f"{file} is a built pool: it must be the only entry of prompts.pool")
    known = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for source in files for f in files_of(source)]
    # without extra text, C is what the paired prompts are after their filter
    exclude = [] if extra else recipe.prompts.paired_exclude
    folder = Path("pools") / f"{files[0].name.split('.')[0]}-{digest([known, recipe.prompts.column, exclude])[:8]}"

    def make() -> None:
        tell(f"building the prompt pool {folder}")
        build_pool(files, folder, column=recipe.prompts.column, exclude=exclude)

    make_once(make, folder / NAME, _claim(folder), (folder, folder.parent))
    return PromptPool.open(folder)


def find_pool(
    pool_digest: str | None, named: Iterable[str | Path] = (), roots: Iterable[Path] = ()
) -> PromptPool | None:
    """The pool of that digest: one of `named`, else one below pools/ of the `roots`; None when it is not there.

    Folders that are no pool, or a damaged one, are passed over. The caller closes what is found.
    """
    places = [Path(folder) for folder in named]
    for root in dict.fromkeys(roots):
        places += sorted((root / "pools").glob("*"))
    for folder in places if pool_digest else []:
        try:
            pool = PromptPool.open(folder)
        except RcdeployError:
            continue  # another run's business
        if pool.digest == pool_digest:
            return pool
        pool.close()
    return None
