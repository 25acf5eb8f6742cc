"""rcdeploy prompts: builds, inspects and samples prompt pools."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JSON, QUIET
from .prompt_options import Column, Sources
from .prompts_generate import generate_command
from .prompts_unseen import unseen_command, words_command

if TYPE_CHECKING:
    from ..progress import Progress
    from ..prompts.pool import PromptPool

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Prompt pools: the captions that random conditioning samples from.

Random conditioning pairs a noisy latent with a prompt that has nothing to do with it, so that the student learns what
the teacher does for prompts no image was ever made for. The pool is where those prompts come from: the more it holds,
and the more of what users will ask for, the better. Sampling from tens of millions costs no more than from a thousand.

    rcdeploy prompts build captions.txt more.parquet --out pools/captions

    rcdeploy prompts info pools/captions

Without captions:  rcdeploy prompts generate --out pools/made --paired 212000
""",
)

Pool = Annotated[Path, typer.Argument(help="Folder of a prompt pool, as written by build.", show_default=False)]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep only captions in which this regular expression matches. Repeat to allow any of several.",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Drop captions in which this regular expression matches. Repeatable.", show_default=False),
]


@app.command()
def build(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Output folder; a pool there is replaced.", show_default=False)],
    column: Column = None,
    include: Include = None,
    exclude: Exclude = None,
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate/--no-deduplicate", help="Keep one of equal captions, ignoring white space.")
    ] = True,
    min_length: Annotated[int, typer.Option(min=0, help="Minimum number of characters.")] = 0,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of characters.", show_default=False)
    ] = None,
    script: Annotated[str, typer.Option(help="'latin' drops captions with letters of other scripts.")] = "any",
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Number of captions to keep, sampled uniformly after filtering.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of --sample.")] = 0,
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Build a prompt pool from caption files, in one pass and little memory.

    Captions are stripped and runs of white space become one space; empty and repeated captions are dropped and counted.

    --include and --exclude ignore case and match whole words: "cat" matches "A Cat." but not "category"; "cat\\w*"
    matches both. So  --exclude 'watermark(ed)?' --exclude 'stock photos?'  drops captions with these words only.

    20 million of LAION's captions, from its parquet files:  rcdeploy prompts build laion/ --out pools/laion
    --min-length 10 --max-length 300 --script latin --sample 20000000

    An existing pool at --out stays until the new one is complete.
    """
    from ..prompts.filters import PoolOptions
    from ..prompts.pool_builder import build_pool

    options = PoolOptions(
        column=column,
        deduplicate=deduplicate,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        min_length=min_length,
        max_length=max_length,
        script=script,
        sample=sample,
        seed=seed,
    )
    with _row_progress(quiet or as_json) as progress:
        pool = build_pool(sources, out, options, progress)
    with pool:
        if as_json:
            typer.echo(json.dumps(_summary(pool), indent=1, ensure_ascii=False))
        else:
            _print_table(pool)
            typer.echo(f"\nNext: rcdeploy prompts sample {out}")


@app.command()
def info(pool: Pool, as_json: bool = JSON) -> None:
    """Show the size, sources and first prompts of a pool, and why captions were dropped."""
    from ..prompts.pool import PromptPool

    with PromptPool.open(pool) as prompts:
        first = prompts.take(range(min(5, len(prompts))))
        if as_json:
            typer.echo(json.dumps(_summary(prompts) | {"first": first}, indent=1, ensure_ascii=False))
            return
        _print_table(prompts)
        typer.echo("\nThe first prompts:")
        for prompt in first:
            typer.echo(f"  {printable(prompt)}")


@app.command("sample")
def sample_command(
    pool: Pool,
    n: Annotated[int, typer.Option("-n", "--number", min=0, help="Number of prompts.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    as_json: bool = JSON,
) -> None:
    """Sample prompts as training does: uniformly from the whole pool, with replacement."""
    import numpy as np

    from ..prompts.pool import PromptPool

    with PromptPool.open(pool) as prompts:
        samples = prompts.draw(np.random.default_rng(seed), n)
    if as_json:
        typer.echo(json.dumps(samples, indent=1, ensure_ascii=False))
    else:
        for prompt in samples:
            typer.echo(printable(prompt))


def printable(text: str) -> str:
    """`text` with control characters replaced: captions from the web must not steer the terminal. --json is exact."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _summary(pool: PromptPool) -> dict[str, Any]:
    mean = pool.facts.bytes / len(pool)
    return {"pool": str(pool.folder), "digest": pool.digest, "mean_bytes": round(mean, 1)} | pool.manifest.facts


def _print_table(pool: PromptPool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..prompts.filters import COUNTS

    sources = [asdict(source) for source in pool.facts.sources]
    # pools of an earlier version count less; reasons that never occurred need no column
    optional = {"length", "script", "not_drawn"}
    columns = [c for c in COUNTS if c not in optional or any(source[c] for source in sources)]
    mean = pool.facts.bytes / len(pool)
    table = Table(
        title=f"{len(pool):,} prompts, {pool.facts.bytes / 1e6:,.1f} MB, {mean:.1f} bytes a prompt",
        caption=f"digest {pool.digest[:16]}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("source", overflow="fold")
    for column in columns:
        table.add_column({"not_drawn": "not sampled"}.get(column, column), justify="right")
    for source in sources:
        table.add_row(Text(printable(source["name"])), *(f"{source[column]:,}" for column in columns))
    Console().print(table)


@contextmanager
def _row_progress(quiet: bool) -> Iterator[Progress]:
    """A bar on stderr with the rate in rows; nothing when quiet."""
    from ..progress import no_progress

    if quiet:
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows, {task.fields[rate]:,.0f} rows/s"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("reading captions", total=None, rate=0.0)
        start = time.perf_counter()

        def update(stage: str, completed: int, total: int, _metrics: object = None, /) -> None:
            rate = completed / (time.perf_counter() - start)
            bars.update(task, description=stage, completed=completed, total=total or None, rate=rate)

        yield update


app.command("generate")(generate_command)
app.command("unseen")(unseen_command)
app.command("words")(words_command)
