"""rcdeploy prompts unseen and rcdeploy prompts words"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from . import asking
from .console import show_table, stages

if TYPE_CHECKING:
    from ..prompts.journal import Journal
    from ..prompts.keywords import Keywords
    from ..prompts.unseen import Concept, Dropped

Words = Annotated[
    Path | None, typer.Option("--words", help="A word or phrase a line, singular, for any other concept than animals.")
]


@asking.asks_a_model
def unseen_command(
    sources: Annotated[list[Path], typer.Argument(help="Files or folders of captions, as for build.")],
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    concept: Annotated[str, typer.Option(help="What no caption may mention, in the plural.")] = "animals",
    words: Words = None,
    column: Annotated[str | None, typer.Option(help="Where captions stand; found when not named.")] = None,
    captioner: Annotated[
        Path | None, typer.Option(help="A BLIP folder (transformers), to look at the pictures of the captions too.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Those pictures: a latent cache, or a folder with metadata.csv.")
    ] = None,
    *,
    asks: asking.Asking,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Take a concept out of the captions that get pictures, so that the student meets it as text alone (sec. J).

    First a list of words (for animals ours, made from WordNet), then the language model if one is named, then what BLIP
    says of the pictures that were made of the captions (--captioner, --pictures). All of it is kept in
    OUT/journal.jsonl: the same command goes on after an interruption. All captions are held in memory.

    Writes kept.txt (for prompts.paired), dropped.jsonl (caption, stage, reason: for prompts.pool) and counts.json.
    """
    if (captioner is None) != (pictures is None):
        raise RcdeployError("--captioner and --pictures go together", fix="Give both, or neither.")
    from ..prompts.journal import Journal
    from ..prompts.readers import batches, files_of
    from ..prompts.unseen import Concept, write_split

    wanted = Concept(concept.lower(), keywords_of(concept, words))
    files = [file for source in sources for file in files_of(source)]
    captions = list(dict.fromkeys(c for rows in batches(files, column) for row in rows if (c := " ".join(row.split()))))
    if not captions:
        raise RcdeployError("the sources hold no caption")
    with Journal(out / "journal.jsonl") as journal, stages(quiet or as_json) as progress:
        why = _dropped(wanted, captions, asks, captioner, pictures, journal, progress)
    how: dict[str, object] = {
        "concept": wanted.name,
        "words": len(wanted.keywords.words),
        "model": asks.model.name if asks.model else None,
        "captioner": captioner.resolve().name if captioner else None,
    }
    counts = write_split(out, captions, [why.get(caption) for caption in captions], how)
    show_table(f"captions without {concept} in {out}", list(counts), [counts], as_json=as_json)


def _dropped(
    wanted: Concept,
    captions: list[str],
    asks: asking.Asking,
    captioner: Path | None,
    pictures: Path | None,
    journal: Journal,
    progress: Any,
) -> dict[str, Dropped]:
    """By caption: each stage is given what those before it left."""
    from ..prompts.unseen import SENTENCES, TOKENS_A_SENTENCE, by_keywords, by_model, by_pictures, model_requests

    why = {drop.caption: drop for drop in by_keywords(wanted, captions) if drop}
    if asks.model:
        left = [c for c in captions if c not in why]
        asks.confirm(model_requests(wanted, left), journal, SENTENCES * TOKENS_A_SENTENCE // 2, wanted.name)
        found = by_model(wanted, left, asks.model, journal, lambda d, n: progress("asked", d, n, {}))
        why |= {drop.caption: drop for drop in found if drop}
    if captioner and pictures:
        from ..prompts.captioner import Captioner, look

        left = [c for c in captions if c not in why]
        seen = look(Captioner(captioner), pictures, left, journal, lambda d, n: progress("looked at", d, n, {}))
        found = by_pictures(wanted, seen, left, asks.model, journal, lambda d, n: progress("asked", d, n, {}))
        why |= {drop.caption: drop for drop in found if drop}
    return why


def words_command(
    concept: Annotated[str, typer.Argument(help="animals, or any name with --words.")] = "animals",
    words: Words = None,
) -> None:
    """Print the words that give a concept away, singular and plural, one a line."""
    for form in keywords_of(concept, words).all_forms():
        typer.echo(form)


def keywords_of(concept: str, words: Path | None) -> Keywords:
    from ..prompts.animals import animals
    from ..prompts.keywords import Keywords

    if words:
        return Keywords.read(words)
    if concept.lower() != "animals":
        raise RcdeployError(f"there is no list of words for {concept!r}", fix="Write one, a word a line: --words FILE.")
    return animals()
