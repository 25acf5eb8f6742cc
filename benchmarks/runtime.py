"""Seconds per image: diffusers in torch, our runtime on ONNX Runtime and on OpenVINO, and openvino-genai.

    python benchmarks/runtime.py examples/teachers/fashion            # exports what is needed into build/benchmark

The same model, prompt, size, steps, guidance and threads for all, in one run and in turns, so that other load on the
machine affects all alike: read the ratios. Each program runs in a process of its own, with its own import, load and
first image. --installed: megabytes of the runtime and what it needs, in a fresh environment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WORKER = """
import json, sys, time
started = time.perf_counter()
kind, path, prompt, steps, guidance, size, threads = json.loads(sys.argv[1])
if kind == "diffusers (torch)":
    import torch
    torch.set_num_threads(threads)
    from diffusers import StableDiffusionPipeline
    imported = time.perf_counter()
    pipe = StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    from diffusers import DDIMScheduler
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    generate = lambda: pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size)
elif kind == "openvino-genai":
    import openvino_genai
    imported = time.perf_counter()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    pipe = openvino_genai.Text2ImagePipeline(path, "CPU", **settings)
    generate = lambda: pipe.generate(
        prompt, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size
    )
else:
    from rcdeploy_runtime import TextToImage
    imported = time.perf_counter()
    pipe = TextToImage.load(path, threads=threads)
    generate = lambda: pipe.generate(
        prompt, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size
    )
loaded = time.perf_counter()
generate()
first = time.perf_counter()
print(json.dumps({"import": imported - started, "load": loaded - imported, "first": first - loaded}), flush=True)
for line in sys.stdin:
    turn_started = time.perf_counter()
    generate()
    print(json.dumps(time.perf_counter() - turn_started), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run, or a diffusers folder")
    parser.add_argument("--prompt", default="a photo of a red boot on a white background")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--work", type=Path, default=ROOT / "build/benchmark")
    parser.add_argument("--installed", action="store_true", help="also install the runtime alone and print its size")
    args = parser.parse_args()

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
        task = [name, str(path), args.prompt, args.steps, args.guidance, args.size, args.threads]
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        workers[name] = process
        starts[name] = json.loads(next_json(process))
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(args.turns):
        for name, process in workers.items():
            assert process.stdin is not None
            process.stdin.write("generate\n")
            process.stdin.flush()
            seconds[name].append(json.loads(next_json(process)))
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
