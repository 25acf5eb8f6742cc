"""Arguments and options that several commands share."""

from __future__ import annotations

import typer

CONTEXT = {"help_option_names": ["-h", "--help"]}
"""click's settings; sub-commands inherit them"""

RECIPE = typer.Argument(
    help="A recipe file, for example recipes/quickstart.toml.", metavar="RECIPE", show_default=False
)
MODEL_FOLDER = typer.Argument(help="A run, or a package that rcdeploy export wrote.", show_default=False)
SET = typer.Option(None, "--set", metavar="KEY=VALUE", help="Override a key: --set train.max_steps=100; repeatable.")
JSON = typer.Option(False, "--json", help="Print the result as JSON, and nothing else.")
QUIET = typer.Option(False, "--quiet", "-q", help="No progress and no remarks; errors are still shown.")
DEVICE = typer.Option("auto", "--device", help="auto, cpu, cuda; auto takes a GPU if there is one.")
THREADS = typer.Option(None, "--threads", min=1, help="Threads of the processor.", show_default="the library's choice")
