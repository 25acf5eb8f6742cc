"""Seconds per image: diffusers in torch, our runtime on ONNX Runtime and on OpenVINO, and openvino-genai.

    python benchmarks/runtime.py examples/teachers/fashion            # exports what is needed into build/benchmark
    python benchmarks/runtime.py --full-size                          # c-micro of SD-1.4 at 512 x 512

The same model, prompt, size, steps, guidance and threads for all, in one run and in turns, so that other load on the
machine affects all alike: read the ratios. Each program runs in a process of its own, with its own import, load and
first image. --full-size builds c-micro with random weights (speed does not depend on them) and measures seconds a UNet
step at batch 2 (guidance), seconds for the rest and memory (per_step.py), with diffusers in fp32 and in bf16 as
baselines, one program at a time, because all together need more memory than most machines have; --per-step does so with
any model. --installed: megabytes of the runtime and what it needs, in a fresh environment.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import per_step

ROOT = Path(__file__).resolve().parent.parent

LONGER_IMAGE_STEPS = 5
"""an image of so many steps, less one of a single step, is what the steps take"""

WORKER = """
import json, sys, time
started = time.perf_counter()
kind, path, prompt, steps, guidance, size, threads, precision = json.loads(sys.argv[1])
if kind == "diffusers":
    import torch
    torch.set_num_threads(threads)
    from diffusers import StableDiffusionPipeline
    imported = time.perf_counter()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    pipe = StableDiffusionPipeline.from_pretrained(path, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    from diffusers import DDIMScheduler
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    generate = lambda steps: pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size)
elif kind == "openvino-genai":
    import openvino_genai
    imported = time.perf_counter()
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    pipe = openvino_genai.Text2ImagePipeline(path, "CPU", **settings)
    generate = lambda steps: pipe.generate(
        prompt, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size
    )
else:
    from rcdeploy_runtime import TextToImage
    imported = time.perf_counter()
    pipe = TextToImage.load(path, threads=threads)
    generate = lambda steps: pipe.generate(
        prompt, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size
    )
loaded = time.perf_counter()
generate(steps)
first = time.perf_counter()
print(json.dumps({"import": imported - started, "load": loaded - imported, "first": first - loaded}), flush=True)
for line in sys.stdin:
    if line.strip() == "memory":
        import resource
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9), flush=True)
        continue
    turn_started = time.perf_counter()
    generate(int(line))
    print(json.dumps(time.perf_counter() - turn_started), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="a run, or a diffusers folder")
    parser.add_argument("--full-size", action="store_true", help="c-micro of SD-1.4 with random weights, --per-step")
    parser.add_argument("--per-step", action="store_true", help="seconds a step and memory, in fp32 and bf16")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="of --per-step: programs whose name has one of these")
    parser.add_argument("--prompt", default="a photo of a red boot on a white background")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--work", type=Path, default=ROOT / "build/benchmark")
    parser.add_argument("--installed", action="store_true", help="also install the runtime alone and print its size")
    args = parser.parse_args()
    if args.full_size:
        args.source, args.size = per_step.build_c_micro(args.work / "full_size"), 512
        args.turns = min(args.turns, 3)
    if args.source is None:
        parser.error("name a run or a diffusers folder, or give --full-size")
    if args.full_size or args.per_step:
        measure_steps(args)
        return

    folder = args.source / "pipeline" if (args.source / "pipeline").is_dir() else args.source
    packages = {"ours on ONNX Runtime": "onnx", "ours on OpenVINO": "openvino", "openvino-genai": "openvino"}
    for kind in dict.fromkeys(packages.values()):
        target = args.work / f"{args.source.name}-{kind}"
        if not (target / "manifest.json").is_file():
            command = [sys.executable, "-m", "rcdeploy.cli.main", "export", str(args.source), "--format", kind]
            subprocess.run([*command, "--out", str(target), "-q"], check=True)
    workers: dict[str, subprocess.Popen[str]] = {}
    starts: dict[str, dict[str, float]] = {}
    for name in ("diffusers (torch)", *packages):
        path = folder if name not in packages else args.work / f"{args.source.name}-{packages[name]}"
        kind = name if name == "openvino-genai" else "diffusers" if name not in packages else "ours"
        workers[name] = process = start_worker(kind, path, "fp32", args.steps, args)
        starts[name] = json.loads(next_json(process))
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(args.turns):
        for name, process in workers.items():
            seconds[name].append(ask(process, str(args.steps)))
    for process in workers.values():
        process.communicate("")
    base = statistics.median(seconds["diffusers (torch)"])
    print(f"\n{args.size} x {args.size} pixels, {args.steps} steps, guidance {args.guidance}, {args.threads} threads\n")
    print("| | s per image (median) | spread | times diffusers | import s | load s | first image s |")
    print("|---|---|---|---|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times)
        start = starts[name]
        print(
            f"| {name} | {median:.3f} | {min(times):.3f} to {max(times):.3f} | {base / median:.2f} | "
            f"{start['import']:.2f} | {start['load']:.2f} | {start['first']:.2f} |"
        )
    if args.installed:
        print(f"\nruntime alone, installed: {installed_megabytes():.0f} MB")


def start_worker(
    kind: str, path: Path, precision: str, first_steps: int, args: argparse.Namespace
) -> subprocess.Popen[str]:
    """kind: "diffusers", "ours" or "openvino-genai"; first_steps: of its first image."""
    task = [kind, str(path), args.prompt, first_steps, args.guidance, args.size, args.threads, precision]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER, json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ask(process: subprocess.Popen[str], line: str) -> float:
    """Sends a number of steps, or "memory"; -> seconds of that image, or GB at the peak."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return float(json.loads(next_json(process)))


def measure_steps(args: argparse.Namespace) -> None:
    """The table of --per-step; prints the load of the machine, which should be near zero."""
    folder = args.source / "pipeline" if (args.source / "pipeline").is_dir() else args.source
    print(f"load of the machine when it begins: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    rows = []
    programs = [p for p in per_step.PROGRAMS if not args.only or any(word in p.name for word in args.only)]
    if not programs:
        raise SystemExit(f"--only: the programs are {', '.join(p.name for p in per_step.PROGRAMS)}")
    for program in programs:
        path = folder if program.package is None else per_step.export(args.source, args.work, program.package)
        process = start_worker(program.kind, path, program.precision, 1, args)
        next_json(process)  # import, load, first image
        ask_this = functools.partial(ask, process)
        rows.append((program.name, per_step.measure(ask_this, LONGER_IMAGE_STEPS, args.turns)))
        process.communicate("")
        print(f"{program.name}: {rows[-1][1].step:.3g} s a step", file=sys.stderr, flush=True)
    print(f"\n{args.size} x {args.size} pixels, guidance {args.guidance} (batch 2), {args.threads} threads\n")
    print(per_step.table(rows, args.steps))


def next_json(process: subprocess.Popen[str]) -> str:
    """The worker's next line of JSON: libraries print what they like between."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.lstrip()[:1] in "{0123456789":
            return line
    raise SystemExit("a worker ended; run it by hand to see why")


def installed_megabytes() -> float:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        site = next(Path(folder).glob("lib/python*/site-packages"))
        before = folder_bytes(site)
        subprocess.run([f"{folder}/bin/pip", "install", "-q", str(ROOT / "runtime")], check=True)
        return (folder_bytes(site) - before) / 1e6


def folder_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())


if __name__ == "__main__":
    main()
