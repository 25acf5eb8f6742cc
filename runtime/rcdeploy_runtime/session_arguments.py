"""The options of the command line that say how a package is executed, of `generate` and `serve`."""

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
