"""Generate images from a package, serve it, tune it, print its digest, or build its TensorRT engines."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from . import __version__
from .command_arguments import add_session_arguments, add_tune_arguments, session_arguments
from .errors import RcdeployError
from .server.command import add_serve_arguments, serve

EXIT_INTERRUPTED = 130


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rcdeploy-runtime", description=__doc__)
    parser.add_argument("--version", action="version", version=f"rcdeploy-runtime {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    own = "by default the package's own"
    generate = commands.add_parser("generate", help="generate images from a prompt")
    generate.add_argument("package", help="folder or .zip that rcdeploy export wrote")
    generate.add_argument("prompt")
    generate.add_argument(
        "-o", "--out", type=Path, default=Path("out.png"), help="with --batch: out-0.png, out-1.png, ..."
    )
    generate.add_argument("--negative-prompt", default="")
    generate.add_argument("--seed", type=int)
    generate.add_argument("--steps", type=int, help=f"denoising steps; {own}")
    generate.add_argument("--guidance-scale", type=float, help=f"1 or below halves the work; {own}")
    generate.add_argument("--height", type=int)
    generate.add_argument("--width", type=int)
    generate.add_argument("--batch", type=int, default=1, help="number of images, with seeds that count up from --seed")
    generate.add_argument(
        "--sampler", help=f"ddim, pndm, euler, euler_ancestral, heun, dpm++, dpm++_sde, unipc, lcm, tcd; {own}"
    )
    generate.add_argument("--eta", type=float, default=0.0, help="fresh noise of ddim and tcd, 0 to 1")
    generate.add_argument(
        "--generator", default="philox", help="torch: a seed gives the image that diffusers gives; philox: numpy's"
    )
    generate.add_argument("--image", type=Path, help="begin from this image")
    generate.add_argument("--strength", type=float, default=0.8, help="how much of --image changes, up to 1")
    generate.add_argument("--mask", type=Path, help="white where --image is generated anew")
    generate.add_argument(
        "--decode-tile",
        type=int,
        metavar="PIXELS",
        help="decode in overlapping tiles of this side: less memory, slower",
    )
    add_session_arguments(generate)
    generate.add_argument("--digest", help="sha256:..., which the package must have; `digest` prints it")
    generate.add_argument("--no-verify", action="store_true", help="do not compare the files with their digests")
    generate.add_argument("--json", action="store_true", help="print the record: seeds, steps, seconds")
    generate.add_argument("-q", "--quiet", action="store_true")

    add_serve_arguments(commands.add_parser("serve", help="an HTTP server with the routes of OpenAI's images API"))

    add_tune_arguments(commands.add_parser("tune", help="measure what draws fastest on this machine, and keep that"))

    digest = commands.add_parser("digest", help="print the digest that pins a package: sha256:...")
    digest.add_argument("package")

    build = commands.add_parser("build-engine", help="build TensorRT engines from an ONNX package, on the device")
    build.add_argument("package")
    build.add_argument("--out", type=Path, help="default: beside the package, with -engines at the end")
    build.add_argument("--workspace-gb", type=float, default=4.0)
    build.add_argument("--max-batch", type=int, default=1, help="images at once")
    build.add_argument(
        "--profile", default="", metavar="MIN,USUAL,MAX", help="image sizes, such as 256x256,512x512,768x768"
    )
    build.add_argument("--compute-capability", default="", help="8.6,8.9: build ahead of time with TensorRT-RTX")
    build.add_argument("--hardware-compatible", action="store_true", help="engines for every GPU from Ampere on")
    return parser


def generate(args: argparse.Namespace) -> None:
    from .generation import Step
    from .image_files import check_image_path, load_image, save_images
    from .text_to_image import TextToImage

    check_image_path(args.out)
    image = None if args.image is None else load_image(args.image)
    mask = None if args.mask is None else load_image(args.mask)
    model = TextToImage.load(args.package, verify=not args.no_verify, digest=args.digest, **session_arguments(args))
    if model.tuning and not args.quiet:
        print(f"tuned: {model.tuning}", file=sys.stderr)

    def show_progress(step: Step) -> None:
        bar = "#" * (30 * step.completed // step.total)
        print(f"\r{bar:<30} {step.completed}/{step.total}", end="", file=sys.stderr, flush=True)

    images, record = model.generate(
        args.prompt,
        callback=None if args.quiet else show_progress,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        height=args.height,
        width=args.width,
        batch=args.batch,
        sampler=args.sampler,
        generator=args.generator,
        eta=args.eta,
        image=image,
        strength=args.strength,
        mask=mask,
        decode_tile=args.decode_tile,
    )
    files = [str(file) for file in save_images(images, args.out)]
    if not args.quiet:
        print(file=sys.stderr)
    print(json.dumps({"files": files, **record}) if args.json else "\n".join(files))


def tune(args: argparse.Namespace) -> None:
    from .package import Package
    from .tuning.outcome import keep_choice, result_json, text_table
    from .tuning.search import tune as measure

    def show_progress(seconds: float, candidate: str) -> None:
        part = min(seconds / args.seconds, 1)
        left = max(args.seconds - seconds, 0)
        print(
            f"\r{'#' * int(30 * part):<30} {left:4.0f} s left  {candidate:<40.40}", end="", file=sys.stderr, flush=True
        )

    package = Package(args.package, digest=args.digest)
    quiet = args.quiet or args.json
    result = measure(package, args.seconds, args.max_difference, *([] if quiet else [show_progress]))
    if not quiet:
        print(file=sys.stderr)
    if not args.json:
        print(text_table(package, result))
    file = keep_choice(package, result)
    print(json.dumps({**result_json(package, result), "kept": str(file)}) if args.json else f"kept in {file}")


def digest(args: argparse.Namespace) -> None:
    from .package import Package

    print(Package(args.package).digest)


def build_engine(args: argparse.Namespace) -> None:
    from .engine_options import EngineOptions, parse_capabilities, parse_profile
    from .trt_engines import build_engines

    options = EngineOptions(
        workspace_gb=args.workspace_gb,
        max_batch=args.max_batch,
        sizes=parse_profile(args.profile),
        compute_capabilities=parse_capabilities(args.compute_capability),
        hardware_compatible=args.hardware_compatible,
    )
    out = build_engines(
        args.package, args.out, options, log=lambda message: print(message, file=sys.stderr, flush=True)
    )
    print(out)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something that the user can put right, 130 stopped by Ctrl-C."""
    args = _arguments().parse_args(arguments)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        commands = {
            "generate": generate,
            "serve": serve,
            "tune": tune,
            "digest": digest,
            "build-engine": build_engine,
        }
        commands[args.command](args)
    except RcdeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
