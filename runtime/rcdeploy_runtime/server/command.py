"""rcdeploy-runtime serve: from its arguments to a running server."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_arguments import add_session_arguments, session_arguments
from ..errors import RcdeployError

if TYPE_CHECKING:
    from fastapi import FastAPI

MODULES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "packages",
        nargs="+",
        metavar="package",
        help="folder or .zip that rcdeploy export wrote; of several the first draws where a request names none",
    )
    parser.add_argument("--host", default="127.0.0.1", help="others than this machine's own need a token")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--model", action="append", default=[], help="a package's name in the API, its own by default; one for each"
    )
    parser.add_argument(
        "--token-file", type=Path, help="bearer tokens, one a line; or set RCDEPLOY_SERVER_TOKEN instead"
    )
    parser.add_argument("--no-auth", action="store_true", help="listen on any --host without a token")
    parser.add_argument("--cors-origin", action="append", default=[], help="a web origin that may ask; may be repeated")
    parser.add_argument("--queue", type=int, default=64, help="requests that wait; more get status 429")
    parser.add_argument("--batch-window-ms", type=float, default=10, help="wait for requests to draw together")
    parser.add_argument("--max-images", type=int, default=10, help="of a request, and drawn together")
    parser.add_argument("--max-pixels", type=int, default=1_024 * 1_024, help="height times width")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--max-prompt-characters", type=int, default=2_000)
    parser.add_argument("--max-body-bytes", type=int, default=16 * 2**20)
    parser.add_argument("--max-seconds", type=float, default=600, help="for a request, waiting included")
    parser.add_argument("--url-seconds", type=float, default=3_600, help="how long images have a url")
    parser.add_argument("--grace-seconds", type=int, default=60, help="to finish what was taken, when it is stopped")
    parser.add_argument("--log-prompts", action="store_true")
    add_session_arguments(parser)
    parser.add_argument("--memory-gb", type=float, help="most that a network may take beside its weights")
    parser.add_argument(
        "--decode-tile",
        type=int,
        metavar="PIXELS",
        help="decode in overlapping tiles of this side: less memory, slower",
    )
    parser.add_argument(
        "--digest",
        action="append",
        default=[],
        help="sha256:..., which the package must have; `digest` prints it; one for each package",
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare the files with their digests")


def serve(args: argparse.Namespace) -> None:
    """Serve until a signal; then finish what was taken.

    Raises RcdeployError when something is missing or out of range, before the package is loaded where that can be.
    """
    for module in MODULES:
        try:
            importlib.import_module(module)
        except ImportError:
            raise RcdeployError(
                f"the server needs {module}, which is not installed", fix='pip install "./runtime[server]"'
            ) from None
    from ..generation import whole_number
    from ..text_to_image import TextToImage
    from .app import create_app
    from .json_log import configure_logging
    from .settings import Limits, ServerSettings, Tokens, listening_socket

    if args.no_auth and args.token_file:
        raise RcdeployError("--no-auth lets everybody in, and --token-file does not", fix="Leave one of them out.")
    tokens = Tokens() if args.no_auth else Tokens.load(args.token_file)
    limits = Limits(
        body_bytes=args.max_body_bytes,
        prompt_characters=args.max_prompt_characters,
        pixels=args.max_pixels,
        steps=args.max_steps,
        images=args.max_images,
        queue=args.queue,
        seconds=args.max_seconds,
    )
    settings = ServerSettings(
        limits=limits,
        tokens=tokens,
        batch_window_s=args.batch_window_ms / 1_000,
        url_s=args.url_seconds,
        cors_origins=tuple(args.cors_origin),
        log_prompts=args.log_prompts,
        decode_tile=args.decode_tile,
    )
    names, digests = _names(args.packages, args.model), _digests(args.packages, args.digest)
    grace_s = whole_number("grace-seconds", args.grace_seconds, 1, 24 * 3_600)
    with listening_socket(args.host, args.port, open_to_all=not (tokens or args.no_auth)) as listener:
        models = {
            name: TextToImage.load(
                package,
                verify=not args.no_verify,
                digest=digest,
                memory_gb=args.memory_gb,
                **session_arguments(args),
            )
            for name, package, digest in zip(names, args.packages, digests, strict=True)
        }
        configure_logging(args.log_prompts)
        for name, model in models.items():  # what is compiled or read at the first image, is so now
            if model.tuning:
                logging.getLogger("rcdeploy_runtime.server").info(
                    "tuned", extra={"model": name, "options": str(model.tuning)}
                )
            model.generate("", seed=0, num_inference_steps=1, decode_tile=args.decode_tile)
        _run(create_app(models, settings), listener, grace_s)


def _names(packages: Sequence[str], named: Sequence[str]) -> list[str]:
    """The models' names in the API. Raises RcdeployError for too many of them, and for two that are alike."""
    own = [Path(package).absolute().name.removesuffix(".zip") for package in packages]
    names = [*named, *own[len(named) :]]
    if len(named) > len(packages) or len(set(names)) < len(names):
        raise RcdeployError(
            f"the models' names are {', '.join(names)}: each package needs one of its own",
            fix="Name them in their order: --model student --model teacher.",
        )
    return names


def _digests(packages: Sequence[str], given: Sequence[str]) -> list[str | None]:
    if given and len(given) != len(packages):
        raise RcdeployError(
            f"{len(packages)} packages need {len(packages)} digests, and {len(given)} were given",
            fix="Give --digest once for each package, in their order; or none.",
        )
    return list(given) or [None] * len(packages)


def _run(app: FastAPI, listener: socket.socket, grace_s: int) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=grace_s,
        timeout_keep_alive=30,
    )
    host, port = listener.getsockname()[:2]
    logging.getLogger("rcdeploy_runtime.server").info("serving", extra={"host": host, "port": port})
    # uvicorn stops gracefully, and raises the signal again when it has: here that is no death
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])
