"""What a whole picture costs, from the teacher to two UNet calls and a tiny decoder.

    python benchmarks/picture.py                      # SD-1.4's shape, 512 x 512, random weights: cost alone
    python benchmarks/picture.py --run runs/fashion   # the toy, 64 x 64, with the judge and the Frechet distance

--run takes what `rcdeploy build recipes/fashion.toml` has left. Multiply-accumulates are counted, matrix products in
attention too. Seconds and memory are those of a program of its own, import and load not counted, one program after the
other: begin on a quiet machine (its load is printed). Pictures of more than eight steps are timed as in
`runtime.py --full-size`: the seconds of a step and of the rest.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import per_step

from rcdeploy.bench.costs import branches, component_costs, image_macs
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from runtime import LONGER_IMAGE_STEPS, ask, next_json, start_worker

ROOT = Path(__file__).resolve().parent.parent
MOST_STEPS_TIMED_WHOLE = 8
SECONDS_OF_TURNS = 30
"""short pictures are made over and over for so long, at least --turns times"""


@dataclass(frozen=True)
class Row:
    """A way to make a picture. kind, precision: as runtime.py's worker knows them. path: what it opens."""

    title: str
    kind: str
    path: Path
    precision: str
    steps: int
    guidance: float

    @property
    def unet_calls(self) -> int:
        return self.steps * branches(self.guidance)

    def macs(self) -> int:
        model = describe_model(resolve(self.path))
        return image_macs(component_costs(model, model.image_size), self.steps, self.guidance)["macs"]


def export(source: Path, target: Path, *options: str) -> Path:
    """The package of `source`, made once."""
    if not (target / "manifest.json").is_file():
        command = [sys.executable, "-m", "rcdeploy.cli.main", "export", str(source), "--out", str(target), "-q"]
        subprocess.run([*command, *options], check=True)
    return target


def full_size_rows(work: Path) -> list[Row]:
    student = per_step.build_c_micro(work / "full_size")
    teacher = work / "full_size/teacher"
    decoder = build_tiny_decoder(student, work / "full_size/decoder")
    bf16 = ("--format", "openvino", "--precision", "bf16", "--pictures", "0")
    whole = export(student, work / "c-micro-openvino-bf16", *bf16)
    tiny = export(student, work / "c-micro-openvino-bf16-tiny", *bf16, "--decoder", str(decoder), "--no-encoder")
    onnx = export(student, work / "c-micro-onnx-tiny", "--decoder", str(decoder), "--no-encoder")
    ours = "ours on OpenVINO, bf16"
    return [
        Row("student, 25 guided steps: diffusers, fp32", "diffusers", student, "fp32", 25, 7.5),
        Row("the same: diffusers, bf16", "diffusers", student, "bf16", 25, 7.5),
        Row("teacher, 25 guided steps: diffusers, fp32", "diffusers", teacher, "fp32", 25, 7.5),
        Row(f"student, 25 guided steps: {ours}", "ours", whole, "bf16", 25, 7.5),
        Row("+ folded guidance", "ours", whole, "bf16", 25, 1.0),
        *(Row(f"+ few steps, {n}", "ours", whole, "bf16", n, 1.0) for n in (4, 2, 1)),
        Row("+ tiny decoder, 4 steps", "ours", tiny, "bf16", 4, 1.0),
        Row("+ tiny decoder, 2 steps", "ours", tiny, "bf16", 2, 1.0),
        Row("+ tiny decoder, 1 step", "ours", tiny, "bf16", 1, 1.0),
        Row("tiny decoder, 2 steps: ours on ONNX Runtime, fp32", "ours", onnx, "fp32", 2, 1.0),
    ]


def build_tiny_decoder(model: Path, folder: Path) -> Path:
    """TAESD's network with random weights, for the latents of a diffusers folder."""
    from rcdeploy.decoder.network import build_tiny, tiny_config
    from rcdeploy.recipe_stages import Decoder

    if not (folder / "config.json").is_file():
        config = json.loads((model / "vae/config.json").read_text())
        build_tiny(tiny_config(config, Decoder()), seed=0).save_pretrained(folder)
    return folder


def toy_rows(run: Path, work: Path) -> list[Row]:
    recipe = json.loads((run / "recipe.json").read_text())
    guidance = float(recipe["distill"]["guidance_scale"])
    teacher = Path(recipe["teacher"]["path"])
    few = run / "few_steps"
    packages = {
        "teacher": export(teacher, work / "toy-teacher", "--guidance-scale", str(guidance)),
        "student": export(run, work / "toy-student"),
        "few": export(few, work / "toy-few"),
        "tiny": export(few, work / "toy-tiny", "--decoder", str(run / "decoder"), "--no-encoder"),
    }
    ours = "ours on ONNX Runtime, fp32"
    return [
        Row("teacher, 25 guided steps: diffusers, fp32", "diffusers", teacher, "fp32", 25, guidance),
        Row(f"teacher, 25 guided steps: {ours}", "ours", packages["teacher"], "fp32", 25, guidance),
        Row("student with folded guidance, 25 steps", "ours", packages["student"], "fp32", 25, 1.0),
        *(Row(f"+ few steps, {n}", "ours", packages["few"], "fp32", n, 1.0) for n in (4, 2, 1)),
        *(Row(f"+ tiny decoder, {n}", "ours", packages["tiny"], "fp32", n, 1.0) for n in (4, 2, 1)),
    ]


def time_picture(row: Row, args: argparse.Namespace) -> tuple[float, float, str]:
    """-> (seconds of a picture, GB at the peak, spread)."""
    settings = argparse.Namespace(**{**vars(args), "guidance": row.guidance})
    process = start_worker(row.kind, row.path, row.precision, 1, settings)
    next_json(process)  # import, load, first picture
    send: Callable[[str], float] = functools.partial(ask, process)
    if row.steps > MOST_STEPS_TIMED_WHOLE:
        measured = per_step.measure(send, LONGER_IMAGE_STEPS, args.turns)
        result = row.steps * measured.step + measured.rest, measured.memory, ""
    else:
        seconds = [send(str(row.steps))]
        while len(seconds) < args.turns or sum(seconds) < SECONDS_OF_TURNS and len(seconds) < 5 * args.turns:
            seconds.append(send(str(row.steps)))
        spread = f"{min(seconds):.3g} to {max(seconds):.3g}"
        result = statistics.median(seconds), send("memory"), spread
    process.communicate("")
    return result


def score(row: Row, captions: Path | None, count: int) -> dict[str, float]:
    """What the judge says of `count` pictures of held-out captions."""
    command = [sys.executable, "-m", "rcdeploy.cli.main", "evaluate", str(row.path), "--json", "--count", str(count)]
    command += ["--steps", str(row.steps), "--guidance-scale", str(row.guidance), "--metrics", "judge"]
    command += ["--prompts", str(captions)] if captions else []
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    scores: dict[str, float] = json.loads(result.stdout)["scores"]["all"]
    return scores


def markdown(rows: Sequence[Row], measured: Sequence[tuple[float, float, str]], scores: Sequence[Any]) -> str:
    quality = any(scores)
    head = ["", "UNet calls", "GMACs", "s a picture", "spread", "memory, GB", "times the first"]
    head += ["item, %", "colour, %", "Frechet distance"] if quality else []
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row, (seconds, memory, spread), scored in zip(rows, measured, scores, strict=True):
        cells = [row.title, str(row.unet_calls), f"{row.macs() / 1e9:,.3g}" if quality else f"{row.macs() / 1e9:,.0f}"]
        cells += [f"{seconds:.3g}", spread, f"{memory:.2g}", f"{measured[0][0] / seconds:.1f}"]
        if quality:
            percent = [f"{100 * scored[key]:.1f}" if scored else "" for key in ("judge.item", "judge.colour")]
            cells += [*percent, f"{scored['judge.frechet_distance']:.2f}" if scored else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the toy's run folder; SD-1.4's shape by default")
    parser.add_argument("--captions", type=Path, help="for --run: scored; by default those of each package")
    parser.add_argument("--count", type=int, default=1000, help="captions that are scored")
    parser.add_argument("--prompt", default="a photo of a red boot on a white background")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "build/benchmark")
    args = parser.parse_args()
    rows = toy_rows(args.run, args.work) if args.run else full_size_rows(args.work)
    args.size = 64 if args.run else 512
    print(f"load of the machine when it begins: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    measured: list[tuple[float, float, str]] = []
    for row in rows:
        measured.append(time_picture(row, args))
        print(f"{row.title}: {measured[-1][0]:.3g} s", file=sys.stderr, flush=True)
    scores: list[dict[str, float]] = []
    for row in rows:
        scores.append(score(row, args.captions, args.count) if args.run and row.kind == "ours" else {})
    print(f"\n{args.size} x {args.size} pixels, {args.threads} threads\n")
    print(markdown(rows, measured, scores))


if __name__ == "__main__":
    main()
