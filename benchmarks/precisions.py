"""Size, error, image quality and speed of every export precision, as one table.

    python benchmarks/precisions.py examples/teachers/fashion --prompts examples/teachers/fashion/captions.txt.gz

One `rcdeploy export` each, into build/precisions, which measures all of it.
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
    parser.add_argument("--pictures", dest="image_count", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar='"FORMAT PRECISION"')
    parser.add_argument("--work", type=Path, default=ROOT / "build/precisions")
    args = parser.parse_args()
    print("| package | MB | UNet, MB | relative error | judged right, % | grey levels | UNet step against fp32 |")
    print("|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        format_name, precision = kind.split()
        arguments = [args.source, "--format", format_name, "--precision", precision]
        arguments += ["--out", str(args.work / f"{format_name}-{precision}"), "--pictures", str(args.image_count)]
        arguments += ["--prompts", args.prompts] if args.prompts else []
        command = [sys.executable, "-W", "ignore", "-m", "rcdeploy.cli.main", "export", *arguments, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        print(table_row(kind, json.loads(done.stdout)), flush=True)


def table_row(kind: str, result: dict[str, Any]) -> str:
    facts = result["facts"]
    megabytes = {c["component"]: c["MB"] for c in result["components"]}
    seconds = facts.get("seconds_per_step")
    comparison = facts.get("pictures", {})
    errors = [e["relative_error"] for e in facts.get("unet_error_by_timestep", [])]
    errors = errors or [p["relative_error"] for p in facts["parity"] if p["component"] == "unet"]
    judged = comparison.get("judge", {})
    shares = "; ".join(" / ".join(f"{100 * share:.0f}" for share in shares.values()) for shares in judged.values())
    speed = f"{seconds['fp32'] / list(seconds.values())[1]:.2f}" if seconds else "1"
    grey_levels = f"{comparison['grey_levels']:.1f}" if comparison.get("count") else ""
    size = f"{sum(megabytes.values()):.1f} | {megabytes['unet']:.1f}"
    return f"| {kind} | {size} | {max(errors):.1e} | {shares} | {grey_levels} | {speed} |"


if __name__ == "__main__":
    main()
