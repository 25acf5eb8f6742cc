"""Runs the short benchmarks and writes benchmarks/RESULTS.md, with the machine and the versions.

    python benchmarks/results.py [--only distillation_step caching] [--out benchmarks/RESULTS.md]

Some minutes, on a machine that has nothing else to do: every table has its spread, and a wide spread means that the
machine was busy. Each benchmark runs in a process of its own, and can be run by itself with longer settings.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caching
import distillation_step

from rcdeploy.machine import describe
from rcdeploy_runtime.files import replacing

HERE = Path(__file__).resolve().parent


def prompt_pool(result: dict[str, Any]) -> str:
    lines = [
        f"{result['count']:,} captions, {result['text_mb']:,.0f} MB of text, built at "
        f"{result['build_rows_per_s']:,.0f} captions a second",
        "",
        "| | opened in ms | single draws a second | draws a second, 256 at once | MB of memory added |",
        "|---|---|---|---|---|",
        f"| ours | {result['open_ms']:,.1f} | {result['single_draws_per_s']:,.0f} | "
        f"{result['batch_256_draws_per_s']:,.0f} | {result['read_added_mb']:,.1f} |",
    ]
    if "pandas_open_ms" not in result:
        return "\n".join([*lines, "", "pandas is not installed: not compared with it."])
    return "\n".join(
        [
            *lines,
            f"| a pandas Series | {result['pandas_open_ms']:,.1f} | {result['pandas_single_draws_per_s']:,.0f} | | "
            f"{result['pandas_added_mb']:,.1f} |",
        ]
    )


BENCHMARKS: dict[str, tuple[str, list[str], Callable[[dict[str, Any]], str] | None]] = {
    "distillation_step": ("A distillation step", ["--json"], distillation_step.markdown),
    "caching": ("Filling the latent cache", ["--json"], caching.markdown),
    "runtime": ("Seconds a picture", ["examples/teachers/fashion", "--turns", "5"], None),  # prints its table
    "prompt_pool": ("The prompt pool", ["--count", "300000", "--json"], prompt_pool),
}
"""heading, arguments, and the function from its JSON to a table"""


def run(name: str) -> str:
    heading, arguments, table = BENCHMARKS[name]
    command = [sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), *arguments]
    print(f"{name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    text = table(json.loads(done.stdout)) if table else done.stdout
    command_line = " ".join([f"benchmarks/{name}.py", *(a for a in arguments if a != "--json")])
    return f"## {heading}\n\n`python {command_line}`\n\n{text.strip()}\n"


def machine() -> str:
    facts = describe()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    gpus = ", ".join(gpu["name"] for gpu in facts["gpus"]) or "no GPU"
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    return (
        f"{datetime.date.today()}; {facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB, {gpus}; "
        f"{facts['os']}, Python {facts['python']}; {load}. {versions}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()
    parts = ["# Benchmarks\n\nWritten by `make bench` (benchmarks/results.py).\n", machine() + "\n"]
    parts += [run(name) for name in args.only]
    with replacing(args.out) as beside:
        beside.write_text("\n".join(parts), encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
