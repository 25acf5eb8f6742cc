"""rcdeploy prompts generate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import err, show_table, stages
from .language_model_options import LanguageModelOptions, with_language_model
from .options import JSON, QUIET

if TYPE_CHECKING:
    from ..progress import Progress
    from ..prompts.journal import Journal
    from ..prompts.nouns import Noun

TOKENS_PER_VERDICT = 40
"""expected of "yes" or "no" with a brief explanation"""


@with_language_model
def generate_command(
    out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
    nouns: Annotated[
        Path | None,
        typer.Option(help="File with a noun per line, for prompts of your own domain.", show_default="WordNet's nouns"),
    ] = None,
    wordnet: Annotated[
        Path | None,
        typer.Option(help="Folder with data.noun and index.noun of a WordNet.", show_default="the built-in 3.0"),
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Maximum depth in WordNet's hierarchy.")] = 14,
    max_nouns: Annotated[
        int | None, typer.Option(min=1, help="Number of random nouns to use.", show_default="all")
    ] = None,
    per_noun: Annotated[int, typer.Option(min=1, max=2000, help="Number of prompts per noun.")] = 128,
    paired: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Also write a subset of this size, balanced over the nouns, for prompts.paired.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    *,
    language_model: LanguageModelOptions,
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Generate prompts without captions: nouns that can be seen, and a number of prompts for each.

    With a language model (--endpoint or --local-model) as in the paper: it decides which of WordNet's nouns are visual,
    then writes the prompts. Answers are kept in OUT/journal.jsonl, so that the same command resumes after any
    interruption and sends no request twice. Without one WordNet's categories decide, and templates write: free, within
    a minute, and much plainer.

    Writes nouns.txt, pool.txt.gz (all prompts), paired.txt.gz (with --paired) and made.json.
    """
    from ..prompts.generate import TOKENS_PER_PROMPT, ModelPrompts, from_templates, write_prompts
    from ..prompts.journal import Journal
    from ..prompts.nouns import visual_by_kind

    candidates = _candidates(nouns, wordnet, depth, max_nouns, seed)
    model = language_model.model
    provenance: dict[str, object] = {
        "nouns_from": "file" if nouns else "wordnet",
        "depth": None if nouns else depth,
        "per_noun": per_noun,
        "by": model.name if model else "templates",
    }
    if model is None:
        chosen = candidates if nouns else visual_by_kind(candidates)
        counts = write_prompts(out, chosen, from_templates(per_noun, seed), paired, seed, provenance)
    else:
        with Journal(out / "journal.jsonl") as journal, stages(quiet or as_json) as progress:
            chosen = candidates if nouns else _visual_nouns(language_model, candidates, journal, progress)
            prompts_of = ModelPrompts(model, journal, per_noun)
            language_model.confirm(prompts_of.missing(chosen), journal, TOKENS_PER_PROMPT * per_noun, "prompts")
            if failed := prompts_of.request_missing(chosen, progress):
                err.print(f"{failed:,} requests had no usable answer; run the command again to retry", style="yellow")
            counts = write_prompts(out, chosen, prompts_of, paired, seed, provenance)
    show_table(f"prompts in {out}", list(counts), [counts], as_json=as_json)
    if not as_json:
        subset = f' and prompts.paired = ["{out}/paired.txt.gz"]' if "paired" in counts else ""
        err.print(f'In a recipe: prompts.pool = ["{out}/pool.txt.gz"]{subset}', style="dim", markup=False)


def _candidates(file: Path | None, wordnet: Path | None, depth: int, max_nouns: int | None, seed: int) -> list[Noun]:
    from ..prompts.generate import sample_nouns
    from ..prompts.nouns import read_nouns, wordnet_nouns
    from ..prompts.wordnet import WordNet

    nouns = read_nouns(file) if file else wordnet_nouns(depth, WordNet.open(wordnet) if wordnet else None)
    return nouns if max_nouns is None else sample_nouns(nouns, max_nouns, seed)


def _visual_nouns(
    language_model: LanguageModelOptions, candidates: list[Noun], journal: Journal, progress: Progress
) -> list[Noun]:
    from ..prompts.nouns import visual_by_model, visual_requests

    assert language_model.model is not None
    language_model.confirm(visual_requests(candidates), journal, TOKENS_PER_VERDICT, "which nouns are visual")
    nouns, failed = visual_by_model(candidates, language_model.model, journal, progress)
    if failed:
        err.print(f"{failed:,} nouns had no usable answer and are left out", style="yellow")
    return nouns
