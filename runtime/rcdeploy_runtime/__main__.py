"""python -m rcdeploy_runtime: draw from a package, or build its TensorRT engines, on a device that has nothing else."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from . import __version__
from .errors import RcdeployError


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rcdeploy_runtime", description=__doc__)
    parser.add_argument("--version", action="version", version=f"rcdeploy-runtime {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    draw = commands.add_parser("generate", help="draw pictures from a prompt")
    draw.add_argument("package", help="folder or .zip that rcdeploy export wrote")
    draw.add_argument("prompt")
    draw.add_argument("-o", "--out", type=Path, default=Path("out.png"), help="with --batch: out-0.png, out-1.png, ...")
    draw.add_argument("--negative-prompt", default="")
    draw.add_argument("--seed", type=int)
    draw.add_argument("--steps", type=int, default=25)
    draw.add_argument("--guidance-scale", type=float, default=7.5)
    draw.add_argument("--height", type=int)
    draw.add_argument("--width", type=int)
    draw.add_argument("--batch", type=int, default=1)
    draw.add_argument("--sampler", default="ddim", help="ddim, pndm, euler, euler_ancestral, dpm++, lcm")
    draw.add_argument("--image", type=Path, help="begin from this picture")
    draw.add_argument("--strength", type=float, default=0.8)
    draw.add_argument("--mask", type=Path, help="white where --image may be redrawn")
    draw.add_argument("--device", default="auto")
    draw.add_argument("--threads", type=int)
    draw.add_argument("--no-verify", action="store_true", help="do not compare the files with their digests")
    draw.add_argument("--json", action="store_true", help="print the record: seeds, steps, seconds")
    draw.add_argument("-q", "--quiet", action="store_true")

    build = commands.add_parser("build-engine", help="build TensorRT engines from an ONNX package, on the device")
    build.add_argument("package")
    build.add_argument("--out", type=Path, help="default: beside the package, with -engines at the end")
    build.add_argument("--workspace-gb", type=float, default=4.0)
    build.add_argument("--max-batch", type=int, default=1, help="pictures at once")
    build.add_argument("--compute-capability", default="", help="8.6,8.9: build ahead of time with TensorRT-RTX")
    build.add_argument("--hardware-compatible", action="store_true", help="engines for every GPU from Ampere on")
    return parser


def generate(args: argparse.Namespace) -> None:
    from .picture_files import open_picture, save_pictures
    from .text_to_image import TextToImage

    model = TextToImage.load(args.package, device=args.device, threads=args.threads, verify=not args.no_verify)

    def show(step: object) -> None:
        i, n = step.i, step.n  # type: ignore[attr-defined]
        print(f"\r{'#' * (30 * i // n):<30} {i}/{n}", end="", file=sys.stderr, flush=True)

    images, record = model.generate(
        args.prompt,
        callback=None if args.quiet else show,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        height=args.height,
        width=args.width,
        batch=args.batch,
        sampler=args.sampler,
        image=args.image and open_picture(args.image),
        strength=args.strength,
        mask=args.mask and open_picture(args.mask),
    )
    files = [str(file) for file in save_pictures(images, args.out)]
    if not args.quiet:
        print(file=sys.stderr)
    print(json.dumps({"files": files, **record}) if args.json else "\n".join(files))


def build_engine(args: argparse.Namespace) -> None:
    from .trt_engines import build_engines

    out = build_engines(
        args.package,
        args.out,
        workspace_gb=args.workspace_gb,
        max_batch=args.max_batch,
        compute_capabilities=[c for c in args.compute_capability.split(",") if c],
        hardware_compatible=args.hardware_compatible,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(out)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something the user can mend."""
    args = _arguments().parse_args(arguments)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        {"generate": generate, "build-engine": build_engine}[args.command](args)
    except RcdeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
