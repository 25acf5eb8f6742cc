"""Time and memory of building, opening and sampling a prompt pool.

Purpose: shows that opening and sampling do not depend on the size of the pool, and that memory does not grow with it.
Cost: 1,000,000 captions: about 10 s, 150 MB of disk; 20,000,000: some minutes, 3 GB; 100,000,000 with a sample of
    20,000,000: a quarter of an hour, 13 GB; in a temporary folder, removed.
Launch: python benchmarks/prompt_pool.py [--count 20000000] [--sample N] [--json] [--folder where/there/is/room]

Captions are synthetic, of some 70 bytes, all different; one in a hundred is repeated and must be removed.
Building and reading run in processes of their own, so that the memory of one does not hide that of the other. The page
cache is warm: the captions were just written. Peaks are the processes' own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rcdeploy.bench.latency_worker import peak_memory

VOCABULARY = (
    "watercolour painting photo sketch render poster mural collage "
    "fresco engraving etching pastel mosaic print drawing scan",
    "quiet bright misty golden crowded empty distant ancient modern tiny enormous rusty gentle frozen sunlit stormy",
    "harbour kitchen forest street meadow library station garden "
    "bridge desert castle workshop market island canyon attic",
    "dog cat horse fox owl whale robot child fisherman dancer tractor bicycle teapot lantern piano sailboat",
    "red blue green yellow violet orange white black silver brown pink turquoise crimson ivory amber teal",
    "sleeping running waiting singing glowing floating reading jumping "
    "resting dancing working smiling falling drifting spinning hiding",
    "dawn noon dusk midnight winter summer autumn spring "
    "sunrise sunset twilight evening morning rain snowfall moonlight",
)  # 7 lists of 16 words: 2**28 captions, distinct by construction
DRAWS = 200_000
MAX_PANDAS_COUNT = 20_000_000
"""captions: a Series of more takes gigabytes of memory"""


def write_captions(path: Path, count: int) -> None:
    """Writes count + count // 100 lines: `count` different captions, then the first hundredth of them once more."""
    lists = [text.split() for text in VOCABULARY]
    heads = [f"a {a} of a {b} {c}" for a in lists[0] for b in lists[1] for c in lists[2]]  # 12 bits
    middles = [f" with a {a} {b}" for a in lists[4] for b in lists[3]]  # 8 bits
    tails = [f" {a} at {b}\n" for a in lists[5] for b in lists[6]]  # 8 bits
    total = count + count // 100
    step = 200_000
    with path.open("w", encoding="utf-8") as f:
        for first in range(0, total, step):
            i = np.arange(first, min(first + step, total), dtype=np.uint64) % np.uint64(count)
            mixed = (i * np.uint64(0x9E3779B1)) & np.uint64(2**28 - 1)  # odd factor: a bijection of 28 bits
            parts = (mixed >> np.uint64(16), (mixed >> np.uint64(8)) & np.uint64(255), mixed & np.uint64(255))
            f.write(
                "".join(heads[a] + middles[b] + tails[c] for a, b, c in zip(*(p.tolist() for p in parts), strict=True))
            )


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def stage_build(folder: Path, sample: int | None) -> dict[str, Any]:
    from rcdeploy.prompts.filters import PoolOptions
    from rcdeploy.prompts.pool_builder import build_pool

    options = PoolOptions(min_length=10, max_length=300, script="latin", sample=sample) if sample else PoolOptions()
    before = resident_mb()
    start, cpu = time.perf_counter(), time.process_time()
    with build_pool([folder / "captions.txt"], folder / "pool", options) as pool:
        seconds = time.perf_counter() - start
        (source,) = pool.facts.sources
        return {
            "kept": len(pool),
            "duplicate": source.duplicate,
            "text_mb": pool.facts.bytes / 1e6,
            "build_s": seconds,
            "build_cpu_s": time.process_time() - cpu,
            "build_rows_per_s": source.rows / seconds,
            "build_peak_added_mb": (peak_memory() or 0) / 2**20 - before,
        }


def stage_read(folder: Path, _sample: int | None) -> dict[str, Any]:
    from rcdeploy.prompts.pool import PromptPool

    before = resident_mb()
    start = time.perf_counter()
    pool = PromptPool.open(folder / "pool")
    open_seconds = time.perf_counter() - start
    rng = np.random.default_rng(0)
    indices = rng.integers(0, len(pool), size=DRAWS).tolist()
    # seconds for DRAWS draws, the best of 5 rounds: other work on the machine comes and goes
    single = math.inf
    batched = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for i in indices:
            pool[i]
        single = min(single, time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(DRAWS // 256):
            pool.draw(rng, 256)
        batched = min(batched, time.perf_counter() - start)
    return {
        "open_ms": open_seconds * 1e3,
        "single_draws_per_s": DRAWS / single,
        "batch_256_draws_per_s": DRAWS // 256 * 256 / batched,
        "read_added_mb": resident_mb() - before,
        "read_resident_mb": resident_mb(),
    }


def stage_pandas(folder: Path, _sample: int | None) -> dict[str, Any]:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    before = resident_mb()
    start = time.perf_counter()
    captions = pd.read_csv(folder / "captions.txt", header=None, names=["text"], sep="\t", quoting=3)["text"]
    open_seconds = time.perf_counter() - start
    indices = np.random.default_rng(0).integers(0, len(captions), size=DRAWS).tolist()
    start = time.perf_counter()
    for i in indices:
        captions.iat[i]
    single = time.perf_counter() - start
    added = resident_mb() - before
    return {"pandas_open_ms": open_seconds * 1e3, "pandas_single_draws_per_s": DRAWS / single, "pandas_added_mb": added}


STAGES = {"build": stage_build, "read": stage_read, "pandas": stage_pandas}


def in_own_process(stage: str, folder: Path, sample: int | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    command += ["--sample", str(sample)] if sample else []
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return result


def measure(count: int, sample: int | None, parent: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rcdeploy-prompt-pool-", dir=parent) as name:
        folder = Path(name)
        write_captions(folder / "captions.txt", count)
        result = {"count": count, "python": sys.version.split()[0], "load": os.getloadavg()[0]}
        result |= in_own_process("build", folder, sample) | in_own_process("read", folder, sample)
        if importlib.util.find_spec("pandas") and count <= MAX_PANDAS_COUNT:
            result |= in_own_process("pandas", folder, sample)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="captions, up to 2**28 (default: 1,000,000)")
    parser.add_argument("--sample", type=int, help="captions to sample, after filters of length and script")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder (default: the system's)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(STAGES[args.stage](args.folder, args.sample)))
        return
    if not 1 <= args.count <= 2**28:
        parser.error("--count must be from 1 to 2**28")
    result = measure(args.count, args.sample, args.folder)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        print(f"{key:28} {f'{value:,.1f}' if isinstance(value, float) else value}")
    if "pandas_open_ms" not in result:
        print(f"(pandas is not installed, or captions are more than {MAX_PANDAS_COUNT:,}: no comparison with it)")
    goals = {
        "open under 100 ms": result["open_ms"] < 100,
        "over 200,000 draws/s": result["single_draws_per_s"] > 2e5 and result["batch_256_draws_per_s"] > 2e5,
        "under 100 MB added": result["read_added_mb"] < 100,
        "300,000 rows/s built": result["build_rows_per_s"] > 3e5,
        "all kept": result["kept"] == min(args.count, args.sample or args.count),
    }
    if args.sample:  # equal captions are counted in the sample alone
        goals["under 1,000 MB at the peak"] = result["build_peak_added_mb"] < 1000
    else:
        goals["duplicates found"] = result["duplicate"] == args.count // 100
    print("\n".join(f"{'reached' if reached else 'MISSED':8} {goal}" for goal, reached in goals.items()))


if __name__ == "__main__":
    main()
