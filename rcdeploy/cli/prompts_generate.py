"""rcdeploy prompts generate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import asking
from .console import err, show_table, stages

if TYPE_CHECKING:
    from ..prompts.generate import PromptsOf
    from ..prompts.journal import Journal
    from ..prompts.nouns import Noun


@asking.asks_a_model
def generate_command(
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    nouns: Annotated[
        Path | None, typer.Option(help="A file of nouns, one a line, instead of WordNet's: prompts of your domain.")
    ] = None,
    wordnet: Annotated[
        Path | None, typer.Option(help="Folder with WordNet's data.noun, if not the built-in 3.0.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Steps from WordNet's root, at the most.")] = 14,
    max_nouns: Annotated[int | None, typer.Option(min=1, help="So many of the nouns, drawn by the seed.")] = None,
    per_noun: Annotated[int, typer.Option(min=1, max=2000, help="Prompts a noun.")] = 128,
    paired: Annotated[
        int | None, typer.Option(min=1, help="Also so many of them, even over the nouns, to be drawn by the teacher.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    *,
    asks: asking.Asking,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Make prompts from nothing: nouns that can be seen, so many prompts for each, and a balanced part to draw.

    With a language model (--endpoint, --local-model) as in the paper: it says which of WordNet's nouns are visual,
    then writes the prompts. Answers are kept in OUT/journal.jsonl, so the same command goes on after any interruption
    and asks nothing twice. Without one WordNet's own categories and phrases of ours stand in: free, in a minute, much
    plainer.

    Writes nouns.txt, pool.txt.gz (all prompts), paired.txt.gz (with --paired) and made.json.
    """
    from ..prompts.generate import TOKENS_A_PROMPT, Asked, from_templates, write_prompts
    from ..prompts.journal import Journal

    candidates = _candidates(nouns, wordnet, depth, max_nouns, seed)
    how: dict[str, Any] = {
        "nouns_from": "file" if nouns else "wordnet",
        "depth": None if nouns else depth,
        "per_noun": per_noun,
        "by": asks.model.name if asks.model else "templates",
    }
    if asks.model is None:
        chosen = candidates if nouns else _visual(candidates)
        _finish(write_prompts(out, chosen, from_templates(per_noun, seed), paired, seed, how), out, as_json)
        return
    with Journal(out / "journal.jsonl") as journal, stages(quiet or as_json) as progress:
        chosen = candidates if nouns else _asked_visual(asks, candidates, journal, progress)
        asked = Asked(asks.model, journal, per_noun)
        asks.confirm(asked.missing(chosen), journal, TOKENS_A_PROMPT * per_noun, "prompts")
        failed = asked.ask(chosen, lambda done, of: progress("prompts", done, of, {}))
        if failed:
            err.print(f"{failed:,} requests had no usable answer; the same command asks again", style="yellow")
        prompts_of: PromptsOf = asked
        counts = write_prompts(out, chosen, prompts_of, paired, seed, how)
    _finish(counts, out, as_json)


def _candidates(file: Path | None, wordnet: Path | None, depth: int, most: int | None, seed: int) -> list[Noun]:
    from ..prompts.generate import BALANCE
    from ..prompts.nouns import read_nouns, wordnet_nouns
    from ..prompts.wordnet import WordNet
    from ..random_streams import generator

    found = read_nouns(file) if file else wordnet_nouns(depth, WordNet.open(wordnet) if wordnet else None)
    if most is not None and most < len(found):
        rows = sorted(generator(seed, BALANCE, 2).permutation(len(found))[:most].tolist())
        found = [found[row] for row in rows]
    return found


def _visual(candidates: list[Noun]) -> list[Noun]:
    from ..prompts.nouns import visual_by_kind

    return visual_by_kind(candidates)


def _asked_visual(asks: asking.Asking, candidates: list[Noun], journal: Journal, progress: Any) -> list[Noun]:
    from ..prompts.nouns import visual_by_model, visual_requests

    assert asks.model is not None
    asks.confirm(visual_requests(candidates), journal, 40, "which nouns are visual")
    chosen, failed = visual_by_model(
        candidates, asks.model, journal, lambda done, of: progress("which nouns are visual", done, of, {})
    )
    if failed:
        err.print(f"{failed:,} nouns had no usable answer and are left out", style="yellow")
    return chosen


def _finish(counts: dict[str, int], out: Path, as_json: bool) -> None:
    show_table(f"prompts in {out}", list(counts), [counts], as_json=as_json)
    if not as_json:
        paired = f' and prompts.paired = ["{out}/paired.txt.gz"]' if "paired" in counts else ""
        err.print(f'In a recipe: prompts.pool = ["{out}/pool.txt.gz"]{paired}', style="dim", markup=False)
