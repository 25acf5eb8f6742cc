"""rcdeploy prompts: build a prompt pool, look at it, draw from it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .prompts_generate import generate_command
from .prompts_unseen import unseen_command, words_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..prompts.pool import PromptPool

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Prompt pools: the captions that random conditioning draws from.

Random conditioning pairs a noisy latent with a prompt that has nothing to do with it, so that the student learns what
the teacher does for prompts no image was ever made for. The pool is where those prompts come from: the more it holds,
and the more of what users will ask for, the better. Tens of millions cost no more to draw from than a thousand.

    rcdeploy prompts build captions.txt more.parquet --out pools/captions

    rcdeploy prompts info pools/captions

Without captions they are made:  rcdeploy prompts generate --out pools/made --paired 212000
""",
)

Pool = Annotated[Path, typer.Argument(help="The folder of a prompt pool, as written by build.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]


@app.command()
def build(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Files of captions (.txt: one a line; .csv, .tsv, .jsonl: a column; each also .gz; .parquet), or "
            "folders: all such files in them and below.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; a pool there is replaced.", show_default=False)],
    column: Annotated[
        str | None,
        typer.Option(help="Where captions stand; else the first there is of text, TEXT, caption, prompt."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Keep only captions in which this regular expression finds whole words. Repeat it for 'or'."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Drop captions in which this regular expression finds whole words. May be repeated."),
    ] = None,
    deduplicate: Annotated[
        bool,
        typer.Option("--deduplicate/--no-deduplicate", help="Keep one of equal captions (spacing does not count)."),
    ] = True,
    min_length: Annotated[int, typer.Option(min=0, help="Drop captions of fewer characters.")] = 0,
    max_length: Annotated[int | None, typer.Option(min=1, help="Drop captions of more characters.")] = None,
    script: Annotated[str, typer.Option(help="latin: drop captions with letters of any other script.")] = "any",
    sample: Annotated[
        int | None, typer.Option(min=1, help="Keep exactly so many of what is left, drawn uniformly.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --sample.")] = 0,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Build a pool from files of captions, in one pass and little memory.

    Captions are stripped and runs of white space become one space; empty ones and repetitions are dropped and counted.

    --include and --exclude ignore case and match whole words: "cat" finds "A Cat." but not "category"; "cat\\w*" finds
    both. So  --exclude 'watermark(ed)?' --exclude 'stock photos?'  drops what its words say and nothing else.

    20 million of LAION's captions, from its parquet files:  rcdeploy prompts build laion/ --out pools/laion
    --min-length 10 --max-length 300 --script latin --sample 20000000

    An old pool at --out stays until the new one is whole.
    """
    from ..prompts.pool import build_pool

    with _progress(shown=not (quiet or as_json)) as progress:
        pool = build_pool(
            sources,
            out,
            column,
            deduplicate,
            include or [],
            exclude or [],
            progress,
            min_length=min_length,
            max_length=max_length,
            script=script,
            sample=sample,
            seed=seed,
        )
    with pool:
        if as_json:
            typer.echo(json.dumps(_summary(pool), indent=1, ensure_ascii=False))
        else:
            _print_table(pool)
            typer.echo(f"\nNext: rcdeploy prompts sample {out}")


@app.command()
def info(pool: Pool, as_json: Json = False) -> None:
    """What a pool holds: how many prompts, where from, what was dropped, and the first few."""
    from ..prompts.pool import PromptPool

    with PromptPool.open(pool) as opened:
        first = opened.take(range(min(5, len(opened))))
        if as_json:
            typer.echo(json.dumps(_summary(opened) | {"first": first}, indent=1, ensure_ascii=False))
            return
        _print_table(opened)
        typer.echo("\nThe first prompts:")
        for prompt in first:
            typer.echo(f"  {printable(prompt)}")


@app.command("sample")
def sample_command(
    pool: Pool,
    n: Annotated[int, typer.Option("-n", "--number", min=0, help="How many prompts.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same prompts.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw prompts as training does: each uniform over the whole pool, so that one may come twice."""
    import numpy as np

    from ..prompts.pool import PromptPool

    with PromptPool.open(pool) as opened:
        prompts = opened.draw(np.random.default_rng(seed), n)
    if as_json:
        typer.echo(json.dumps(prompts, indent=1, ensure_ascii=False))
    else:
        for prompt in prompts:
            typer.echo(printable(prompt))


def printable(text: str) -> str:
    """`text` with control characters replaced: captions from the web must not steer the terminal. --json is exact."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _summary(pool: PromptPool) -> dict[str, Any]:
    mean = pool.manifest.facts["bytes"] / len(pool)
    return {"pool": str(pool.folder), "digest": pool.digest, "mean_bytes": round(mean, 1)} | pool.manifest.facts


def _print_table(pool: PromptPool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..prompts.keep import COUNTED

    summary = _summary(pool)
    # pools of an earlier version count less; what never happened needs no column
    often = {"length", "script", "not_drawn"}
    headings = [h for h in COUNTED if h not in often or any(s.get(h) for s in summary["sources"])]
    table = Table(
        title=f"{len(pool):,} prompts, {summary['bytes'] / 1e6:,.1f} MB, {summary['mean_bytes']} bytes a prompt",
        caption=f"digest {pool.digest[:16]}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("source", overflow="fold")
    for heading in headings:
        table.add_column(heading.replace("_", " "), justify="right")
    for source in summary["sources"]:
        table.add_row(Text(printable(source["name"])), *(f"{source[heading]:,}" for heading in headings))
    Console().print(table)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    """Yields what to call with (rows so far, rows in all or None), which draws a bar on stderr; None when not shown."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("reading captions"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows, {task.fields[rate]:,.0f} rows/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task, start = bar.add_task("", total=None, rate=0.0), time.perf_counter()

        def update(rows: int, total: int | None) -> None:
            bar.update(task, completed=rows, total=total, rate=rows / (time.perf_counter() - start))

        yield update


app.command("generate")(generate_command)
app.command("unseen")(unseen_command)
app.command("words")(words_command)
