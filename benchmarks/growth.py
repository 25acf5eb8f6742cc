"""How cost grows: small runs, measured, beside what `rcdeploy estimate` says of them, along one axis at a time.

    python benchmarks/growth.py [--only batch size] [--seconds 5] [--cpu-time] [--json FILE]

Each run (a latent cache, a pool, a few steps of c-micro of the Fashion teacher) and each estimate has a process of its
own, one thread, and no GPU. An estimate that holds for every row here may be trusted with larger numbers: it is
the same arithmetic. --cpu-time counts the process's own seconds, for a machine that has other work; several processes'
are then divided by the cores that they have, and waiting for each other costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE: dict[str, Any] = {
    "student.init": "random",
    "prompts.paired_count": 32,
    "prompts.pool": ["captions-20000.txt"],
    "cache.folder": "cache",
    "cache.batch_size": 8,
    "cache.shard_size": 8,
    "cache.num_inference_steps": 5,
    "train.global_batch_size": 8,
    "train.max_steps": 10,
    "train.checkpoint_every": 1000,
    "train.lr_schedule": "constant",
    "train.warmup_steps": 0,
    "train.trackers": [],
    "evaluate.every": 0,
}
AXES: dict[str, tuple[str, dict[str, Any], int]] = {
    "base": ("a batch of 8, 64 x 64 pixels, 32 latents, 20,000 captions, 10 steps", {}, 1),
    "batch": ("a batch of 32", {"train.global_batch_size": 32}, 1),
    "size": ("128 x 128 pixels", {"cache.resolution": 128}, 1),
    "latents": ("128 latents", {"prompts.paired_count": 128}, 1),
    "captions": ("400,000 captions", {"prompts.pool": ["captions-400000.txt"]}, 1),
    "steps": ("40 steps", {"train.max_steps": 40}, 1),
    "processes": ("two processes (gloo)", {}, 2),
}
"""name -> what differs from the base in words and in settings, and the processes"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--seconds", type=float, default=5, help="of timing for each estimate")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own seconds instead of the clock's")
    parser.add_argument("--json", type=Path, help="also writes what was measured and estimated to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(json.loads(args.worker))
        return
    results = {}
    with tempfile.TemporaryDirectory(prefix="rcdeploy-growth-") as name:
        for axis in args.only:
            print(f"{axis} ...", file=sys.stderr, flush=True)
            results[axis] = compare(axis, Path(name) / axis, args.seconds, args.cpu_time)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    print(markdown(results))


def compare(axis: str, folder: Path, seconds: float, cpu_time: bool) -> dict[str, Any]:
    """-> {"measured", "estimated"}: each {"cache", "training" (seconds), "memory", "disk" (bytes)}."""
    _, settings, processes = AXES[axis]
    folder.mkdir()
    for count in (20_000, 400_000):
        captions = (f"a photo of number {i} on a white background\n" for i in range(count))
        (folder / f"captions-{count}.txt").write_text("".join(captions))
    task = {"settings": {**BASE, **settings}, "processes": processes, "cpu_time": cpu_time, "seconds": seconds}
    return {kind: start({**task, "kind": kind}, folder) for kind in ("estimated", "measured")}


def start(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore"]
    if task["kind"] == "measured" and task["processes"] > 1:
        launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no"]
        command += [*launch, "--num_processes", str(task["processes"]), "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [*command, str(Path(__file__).resolve()), "--worker", json.dumps(task)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    replies = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not replies:
        raise SystemExit(f"{task['kind']} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(replies[-1])
    return result


def worker(task: dict[str, Any]) -> None:
    """One run or one estimate, in the current folder; prints the result."""
    if task["cpu_time"]:
        time.perf_counter = time.process_time
    from beside_plain import quickstart

    recipe = quickstart(task["settings"])
    result = estimated(recipe, task) if task["kind"] == "estimated" else measured(recipe)
    if task["cpu_time"] and task["kind"] == "measured":
        from rcdeploy.machine import usable_cores

        processes_a_core = max(1.0, task["processes"] / usable_cores())
        result |= {key: result[key] * processes_a_core for key in ("cache", "training")}
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(result))


def estimated(recipe: Any, task: dict[str, Any]) -> dict[str, float]:
    from rcdeploy.estimate.estimate import estimate

    result = estimate(recipe, processes=task["processes"], measure=True, seconds=task["seconds"])
    seconds = {stage["stage"]: stage["seconds"] for stage in result["stages"]}
    return {
        "cache": seconds["latent cache"],
        "training": seconds["training"],
        "memory": result["memory"]["peak"],
        "disk": result["total"]["disk_bytes"],
    }


def measured(recipe: Any) -> dict[str, float]:
    from rcdeploy.bench.latency_worker import peak_memory
    from rcdeploy.cache_latents import make_latent_cache
    from rcdeploy.diffusion_model import LatentDiffusionModel
    from rcdeploy.distill.loop import distill
    from rcdeploy.prompts.recipe_pool import open_pool

    teacher = LatentDiffusionModel(recipe.teacher.path)
    teacher.load("unet", "text_encoder")
    open_pool(recipe)
    start = time.perf_counter()
    make_latent_cache(recipe, teacher)
    cache = time.perf_counter() - start
    marks: list[float] = []

    def progress(stage: str, _completed: int, _total: int, *_: object) -> None:
        if stage == "distill":
            marks.append(time.perf_counter())

    del teacher
    distill(recipe, Path("run"), progress, lambda _text: None)
    # the first step, with whatever is made once, ends at the first mark
    training = (marks[-1] - marks[0]) / (len(marks) - 1) * len(marks)
    files = [file for name in ("cache", "pools", "run") for file in Path(name).rglob("*") if file.is_file()]
    sizes = sum(file.stat().st_size for file in files)
    return {"cache": cache, "training": training, "memory": float(peak_memory() or 0), "disk": sizes}


def markdown(results: dict[str, Any]) -> str:
    """Measured and estimated side by side, and the second over the first."""
    units = {"cache": ("cache, s", 1.0), "training": ("training, s", 1.0), "memory": ("memory, MB", 1e6)}
    units["disk"] = ("disk, MB", 1e6)
    names = [name for name, _ in units.values()]
    lines = [
        f"| what differs from the first row | {' | '.join(names)} |",
        "|---" * (1 + len(units)) + "|",
    ]
    for axis, result in results.items():
        cells = []
        for key, (_, unit) in units.items():
            real, guess = (result[kind][key] / unit for kind in ("measured", "estimated"))
            cells.append(f"{real:.3g}, {guess:.3g}: {guess / real:.2f}" if real else "")
        lines.append(f"| {AXES[axis][0]} | {' | '.join(cells)} |")
    return "\n".join(["Each cell: measured, estimated, and the second over the first.", "", *lines])


if __name__ == "__main__":
    main()
