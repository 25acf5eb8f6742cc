"""Random or sliced first weights for a channel student: the same recipe, seeds and steps with either.

    python examples/first_weights.py                    # two short runs, six minutes on two cores

The paper starts channel students at random, because shapes differ from the teacher's. "sliced" takes every n-th channel
of the teacher instead. Writes results/first_weights.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rcdeploy.conditioning import formula
from rcdeploy.recipe_file import load_recipe
from rcdeploy_runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes/quickstart_channels.toml"
CAPTIONS = ROOT / "examples/teachers/fashion/captions_train.txt.gz"
"""without the held-out scenes"""


def curve(init: str, runs: Path, settings: list[str]) -> dict[int, dict[str, float]]:
    """step -> metrics of a run with these first weights."""
    run = runs / f"first_weights_{init}"
    command = [sys.executable, "-m", "rcdeploy.cli.main", "distill", str(RECIPE)]
    command += ["--out", str(run), "--quiet"]
    command += [argument for setting in [f"student.init={init}", *settings] for argument in ("--set", setting)]
    subprocess.run(command, check=True)
    metrics: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        metrics.setdefault(entry["step"], {}).update(entry)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    settings = [f"prompts.{key}=[{json.dumps(str(CAPTIONS))}]" for key in ("paired", "pool")]
    settings += ["evaluate.every=100", "evaluate.num_inference_steps=2", "train.log_every=10", *args.set]
    curves = {init: curve(init, args.runs, settings) for init in ("random", "sliced")}
    steps = sorted(set(curves["random"]) & set(curves["sliced"]))
    listed = [s for s in steps if s == steps[0] or "validation" in curves["random"][s]]
    lines = [
        "| step | loss, random | loss, sliced | validation, random | validation, sliced |",
        "|---|---|---|---|---|",
    ]
    for step in listed:
        values = [curves[init][step].get(name) for name in ("loss", "validation") for init in ("random", "sliced")]
        lines.append(f"| {step} | " + " | ".join("" if v is None else f"{v:.4g}" for v in values) + " |")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "first_weights.json", {init: {str(s): c[s] for s in listed} for init, c in curves.items()})
    lines += ["", f"p(t) of both: {formula(load_recipe(RECIPE, args.set).conditioning)}."]
    (args.out / "first_weights.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
