"""rcdeploy prompts unseen and rcdeploy prompts words"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdeploy_runtime.errors import RcdeployError

from .console import show_table, stages
from .language_model_options import LanguageModelOptions, with_language_model
from .options import JSON, QUIET
from .prompt_options import Column, Sources, Words

if TYPE_CHECKING:
    from ..progress import Progress
    from ..prompts.journal import Journal
    from ..prompts.keywords import Keywords
    from ..prompts.unseen import Concept, Dropped


@with_language_model
def unseen_command(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
    concept: Annotated[str, typer.Option(help="The concept to leave out, in the plural.")] = "animals",
    words: Words = None,
    column: Column = None,
    captioner: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a BLIP captioning model (transformers), to filter by the captions' images too.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Those images: a latent cache, or a folder with metadata.csv.", show_default=False),
    ] = None,
    *,
    language_model: LanguageModelOptions,
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Filter a concept out of captions, so that the student meets it as text alone (paper, section J).

    First a list of words (for animals a built-in one, made from WordNet), then the language model if one is named, then
    BLIP's captions of the captions' images (--captioner, --pictures). Answers are kept in OUT/journal.jsonl: the same
    command resumes after an interruption. All captions are held in memory.

    Writes kept.txt (for prompts.paired), dropped.jsonl (caption, stage, reason: for prompts.pool) and counts.json.
    """
    if (captioner is None) != (pictures is None):
        raise RcdeployError("--captioner and --pictures go together", fix="Give both, or neither.")
    from ..prompts.journal import Journal
    from ..prompts.readers import batches, files_of
    from ..prompts.unseen import Concept, write_split

    unseen = Concept(concept.lower(), read_keywords(concept, words))
    files = [file for source in sources for file in files_of(source)]
    captions = list(dict.fromkeys(c for rows in batches(files, column) for row in rows if (c := " ".join(row.split()))))
    if not captions:
        raise RcdeployError("the sources hold no caption")
    with Journal(out / "journal.jsonl") as journal, stages(quiet or as_json) as progress:
        dropped = _Filter(unseen, language_model, journal, progress).dropped(captions, captioner, pictures)
    provenance: dict[str, object] = {
        "concept": unseen.name,
        "words": len(unseen.keywords.words),
        "model": language_model.model.name if language_model.model else None,
        "captioner": captioner.resolve().name if captioner else None,
    }
    counts = write_split(out, captions, [dropped.get(caption) for caption in captions], provenance)
    show_table(f"captions without {concept} in {out}", list(counts), [counts], as_json=as_json)


@dataclass(frozen=True)
class _Filter:
    """The filters of `prompts unseen`, each for what passed those before."""

    concept: Concept
    language_model: LanguageModelOptions
    journal: Journal
    progress: Progress

    def dropped(self, captions: list[str], captioner: Path | None, images: Path | None) -> dict[str, Dropped]:
        """Dropped captions with the reason. captioner, images: of the last filter, if it is to run."""
        from ..prompts.unseen import (
            MAX_TOKENS_PER_SENTENCE,
            SENTENCES_PER_REQUEST,
            by_keywords,
            by_model,
            model_requests,
        )

        dropped = {drop.caption: drop for drop in by_keywords(self.concept, captions) if drop}
        if model := self.language_model.model:
            remaining = [c for c in captions if c not in dropped]
            tokens = SENTENCES_PER_REQUEST * MAX_TOKENS_PER_SENTENCE // 2
            requests = model_requests(self.concept, remaining)
            self.language_model.confirm(requests, self.journal, tokens, self.concept.name)
            results = by_model(self.concept, remaining, model, self.journal, self.progress)
            dropped |= {drop.caption: drop for drop in results if drop}
        if captioner and images:
            remaining = [c for c in captions if c not in dropped]
            dropped |= self._dropped_by_images(remaining, captioner, images)
        return dropped

    def _dropped_by_images(self, captions: list[str], captioner: Path, images: Path) -> dict[str, Dropped]:
        from ..captioned_images import images_of_captions
        from ..prompts.captioner import Captioner, caption_images
        from ..prompts.unseen import by_images

        source = partial(images_of_captions, images)
        image_captions = caption_images(Captioner(captioner), images, source, captions, self.journal, self.progress)
        model = self.language_model.model
        results = by_images(self.concept, image_captions, captions, model, self.journal, self.progress)
        return {drop.caption: drop for drop in results if drop}


def words_command(
    concept: Annotated[str, typer.Argument(help="animals, or any name with --words.")] = "animals",
    words: Words = None,
) -> None:
    """Print the words that give a concept away, singular and plural, one per line."""
    for form in read_keywords(concept, words).all_forms():
        typer.echo(form)


def read_keywords(concept: str, file: Path | None) -> Keywords:
    """The words of a list, or the built-in ones of animals."""
    from ..prompts.animals import animals
    from ..prompts.keywords import Keywords

    if file:
        return Keywords.read(file)
    if concept.lower() != "animals":
        raise RcdeployError(
            f"there is no list of words for {concept!r}", fix="Write one, a word per line: --words FILE."
        )
    return animals()
