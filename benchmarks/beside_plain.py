"""Shared by the benchmarks that compare our code with a plain loop: their recipe, medians, options."""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parent.parent


def quickstart(settings: dict[str, Any]) -> Recipe:
    """settings: "section.key": value."""
    recipe = ROOT / "recipes/quickstart_channels.toml"
    return load_recipe(recipe, [f"{key}={json.dumps(v)}" for key, v in settings.items()])


def medians_and_ratios(seconds: dict[str, list[float]]) -> tuple[dict[str, float], list[float]]:
    """seconds: of "ours" and "plain", in turns. -> their medians; plain over ours of each turn, in order of size."""
    ratios = sorted(p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True))
    return {name: statistics.median(values) for name, values in seconds.items()}, ratios


def command(doc: str | None, measure: Callable[..., dict[str, Any]], markdown: Callable[[dict[str, Any]], str]) -> None:
    """measure's parameters are the options. Prints the table of what it returns, or all of that with --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, parameter in inspect.signature(measure).parameters.items():
        default = parameter.default
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    parser.add_argument("--threads", type=int, default=0, help="torch's own choice by default")
    parser.add_argument("--json", action="store_true")
    args = vars(parser.parse_args())
    threads = args.pop("threads")
    as_json = args.pop("json")
    if threads:
        torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    result = measure(**args)
    print(json.dumps(result) if as_json else markdown(result))
