"""Steps and seconds until a validation loss: the paper's way of training beside this project's, with the toy.

    python benchmarks/time_to_quality.py [--steps 8000] [--out build/time_to_quality] [--threads 1]

The reference trains as the paper does: c-micro from random first weights, p(t) a sigmoid centred at 0.7, equations 1
and 2 with fixed weights, a constant learning rate. The rate is the best of three after a short run of each; the feature
loss weighs 0.02, because this teacher's activations are large: both favour the reference. Ours starts from the
teacher's sliced weights, centres p(t) at 0.4 as suits this teacher, and lets the learning rate fall (cosine), in runs
of different lengths: each is a whole training, and counts by its end. Everything else is alike: teacher, latents,
captions, batch, EMA, and what is measured, equation 1 on fixed noised latents with other captions than their own.

Both run in rcdeploy's loop, whose steps cost the same, so that the ratio of steps is the ratio of seconds; what a plain
loop's step costs more is in benchmarks/distillation_step.py. Stopped, the same command goes on. Writes
results/time_to_quality.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rcdeploy.plots import new_figure, save_figure

ROOT = Path(__file__).resolve().parent.parent
SAME: dict[str, Any] = {"prompts.paired_count": 2048, "train.ema_decay": 0.999, "train.warmup_steps": 50}
REFERENCE: dict[str, Any] = {
    "student.init": "random",
    "conditioning.centre": 0.7,
    "train.lr_schedule": "constant",
}
OURS: dict[str, Any] = {
    "student.init": "sliced",
    "conditioning.centre": 0.4,
    "train.lr_schedule": "cosine",
    "train.learning_rate": 4e-3,
}
RATES = (1e-3, 2e-3, 4e-3)
SHORT = 400
"""steps of each rate"""
LENGTHS = (1250, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000, help="of the reference (default: 8000)")
    parser.add_argument("--out", type=Path, default=ROOT / "build/time_to_quality", help="the runs' folder")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trials = {}
    for rate in RATES:
        settings = {**REFERENCE, "train.learning_rate": rate, "train.max_steps": SHORT, "evaluate.every": SHORT}
        trials[rate] = last(train(f"rate_{rate:g}", settings, args.out, args.threads))
    best = min(trials, key=lambda rate: trials[rate])
    settings = {**REFERENCE, "train.learning_rate": best, "train.max_steps": args.steps, "evaluate.every": 250}
    reference = train("reference", settings, args.out, args.threads)
    ours = {}
    for steps in LENGTHS:
        settings = {**OURS, "train.max_steps": steps, "evaluate.every": 250}
        ours[steps] = train(f"ours_{steps}", settings, args.out, args.threads)
    result = summary(reference, ours, {f"{rate:g}": value for rate, value in trials.items()})
    (ROOT / "results/time_to_quality.json").write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "results/time_to_quality.md").write_text(markdown(result))
    plot(result, ROOT / "results/time_to_quality.png")
    print(markdown(result))


def train(name: str, settings: dict[str, Any], folder: Path, threads: int) -> list[dict[str, Any]]:
    """-> the lines of the run's metrics.jsonl."""
    settings = {**SAME, **settings, "cache.folder": str(folder / "latents")}
    command = [
        sys.executable,
        "-m",
        "rcdeploy.cli.main",
        "distill",
        str(ROOT / "recipes/quickstart_channels.toml"),
        "--quiet",
    ]
    command += ["--out", str(folder / name)]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    print(f"{name} ...", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def curve(metrics: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(m["step"], m["validation"]) for m in metrics if "validation" in m]


def last(metrics: list[dict[str, Any]]) -> float:
    return curve(metrics)[-1][1]


def summary(
    reference: list[dict[str, Any]], ours: dict[int, list[dict[str, Any]]], rates: dict[str, float]
) -> dict[str, Any]:
    return {
        "rates": rates,
        "reference": curve(reference),
        "ours": {str(steps): curve(metrics) for steps, metrics in ours.items()},
    }


def markdown(result: dict[str, Any]) -> str:
    steps, loss = result["reference"][-1]
    rates = ", ".join(f"{rate}: {value:.4f}" for rate, value in result["rates"].items())
    lines = [
        "# Time to quality",
        "",
        f"`python benchmarks/time_to_quality.py --steps {steps}`: steps until a validation loss, one seed; a step",
        "costs the same in both. Learning rates tried for the reference, and their losses after",
        f"{SHORT} steps: {rates}.",
        "",
        "| | steps | validation loss at the end | the reference is there at step | share of its steps |",
        "|---|---|---|---|---|",
        f"| the paper's: random weights, constant rate | {steps:,} | {loss:.4f} | | |",
    ]
    for name, points in result["ours"].items():
        reached = next((step for step, value in result["reference"] if value <= points[-1][1]), None)
        there = (
            f"{reached:,} | {int(name) / reached:.2f}" if reached else f"not by {steps:,} | < {int(name) / steps:.2f}"
        )
        lines.append(f"| ours: sliced weights, cosine | {int(name):,} | {points[-1][1]:.4f} | {there} |")
    return "\n".join([*lines, "", "![curves](time_to_quality.png)", ""])


def plot(result: dict[str, Any], path: Path) -> None:
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(*zip(*result["reference"], strict=True), color="0.4", label="the paper's: random weights, constant rate")
    for index, points in enumerate(result["ours"].values()):
        label = "ours: sliced weights, cosine" if not index else None
        axes.plot(*zip(*points, strict=True), color="C0", marker="o", markevery=[-1], label=label)
    axes.axhline(result["reference"][-1][1], color="0.6", linestyle=":", linewidth=1)
    axes.set(xlabel="step", ylabel="validation loss", yscale="log", xscale="log")
    axes.set_xticks(ticks := [250, 500, 1000, 2000, 4000, 8000], [f"{tick:,}" for tick in ticks])
    axes.set_yticks(ticks := [0.02, 0.03, 0.05, 0.1], [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0.02)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    main()
