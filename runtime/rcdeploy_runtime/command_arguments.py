"""Arguments of the command line: how a package is executed, of `generate` and `serve`; and those of `tune`."""

from __future__ import annotations

import argparse
from typing import Any


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--backend", help="onnxruntime, openvino or tensorrt; by default the package's own")
    parser.add_argument("--precision", help="that OpenVINO computes in: fp32, bf16, fp16")
    parser.add_argument("--no-tuned", action="store_true", help="do not use what `tune` has kept for this machine")


def session_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of TextToImage.load for them."""
    return {
        "device": args.device,
        "threads": args.threads,
        "backend": args.backend,
        "precision": args.precision,
        "tuned": not args.no_tuned,
    }


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", help="folder or .zip that rcdeploy export wrote")
    parser.add_argument("--seconds", type=float, default=60, help="to measure for; 60 by default")
    parser.add_argument(
        "--max-difference",
        type=float,
        default=4.0,
        help="mean grey levels of 255 by which an image may differ from the reference's; 4 by default",
    )
    parser.add_argument("--digest", help="sha256:..., which the package must have; `digest` prints it")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.add_argument("-q", "--quiet", action="store_true")
