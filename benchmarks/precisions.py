"""What every precision costs and brings: bytes, errors, what the judge makes of the pictures, speed against fp32.

    python benchmarks/precisions.py examples/teachers/fashion --prompts examples/teachers/fashion/captions.txt.gz

One `rcdeploy export` each, into build/precisions; what it measured is printed as one table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("onnx fp32", "onnx fp16", "onnx int8-matmul", "onnx int8")
KINDS += ("openvino fp32", "openvino fp16", "openvino bf16", "openvino int8-weights", "openvino int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a run, or a diffusers folder")
    parser.add_argument("--prompts", help="captions, for a source that is no run")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar='"FORMAT PRECISION"')
    parser.add_argument("--work", type=Path, default=ROOT / "build/precisions")
    args = parser.parse_args()
    print("| package | MB | UNet, MB | relative error | judged right, % | grey levels | UNet step against fp32 |")
    print("|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        form, precision = kind.split()
        words = [
            args.source,
            "--format",
            form,
            "--precision",
            precision,
            "--out",
            str(args.work / f"{form}-{precision}"),
        ]
        words += ["--pictures", str(args.pictures), *(("--prompts", args.prompts) if args.prompts else ())]
        command = [sys.executable, "-W", "ignore", "-m", "rcdeploy.cli.main", "export", *words, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        print(row(kind, json.loads(done.stdout)), flush=True)


def row(kind: str, said: dict[str, Any]) -> str:
    facts, parts = said["facts"], {c["component"]: c["MB"] for c in said["components"]}
    seconds, pictures = facts.get("seconds_per_step"), facts.get("pictures", {})
    errors = [e["relative_error"] for e in facts.get("unet_error_by_timestep", [])]
    errors = errors or [p["relative_error"] for p in facts["parity"] if p["component"] == "unet"]
    judged = pictures.get("judge", {})
    shares = "; ".join(" / ".join(f"{100 * share:.0f}" for share in shares.values()) for shares in judged.values())
    speed = f"{seconds['fp32'] / list(seconds.values())[1]:.2f}" if seconds else "1"
    grey = f"{pictures['grey_levels']:.1f}" if pictures.get("count") else ""
    size = f"{sum(parts.values()):.1f} | {parts['unet']:.1f}"
    return f"| {kind} | {size} | {max(errors):.1e} | {shares} | {grey} | {speed} |"


if __name__ == "__main__":
    main()
