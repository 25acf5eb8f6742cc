"""What a server is told: its limits, where it listens, and who may ask it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RcdeployError
from ..generation import number, whole_number
from ..limits import MAX_IMAGE_SIDE, MAX_PROMPT_CHARACTERS, MAX_TRAIN_TIMESTEPS

TOKEN_VARIABLE = "RCDEPLOY_SERVER_TOKEN"
MIN_TOKEN_CHARACTERS = 16
MAX_IMAGES = 10
"""of one request, as in OpenAI's schema"""
NEW_TOKEN = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'


@dataclass(frozen=True)
class Limits:
    """Bounds on what a client may ask.

    body_bytes: of a request. prompt_characters: of the prompt and of the negative one. pixels: height times width, of
    generated and of uploaded images. steps: UNet steps. images: of one request, and of requests that are drawn
    together. queue: requests that wait. seconds: from a request's arrival to its images.
    """

    body_bytes: int = 16 * 2**20
    prompt_characters: int = 2_000
    pixels: int = 1_024 * 1_024
    steps: int = 100
    images: int = MAX_IMAGES
    queue: int = 64
    seconds: float = 600.0

    def __post_init__(self) -> None:
        whole_number("max-body-bytes", self.body_bytes, 1_024, 2**32)
        whole_number("max-prompt-characters", self.prompt_characters, 1, MAX_PROMPT_CHARACTERS)
        whole_number("max-pixels", self.pixels, 1, MAX_IMAGE_SIDE**2)
        whole_number("max-steps", self.steps, 1, MAX_TRAIN_TIMESTEPS)
        whole_number("max-images", self.images, 1, MAX_IMAGES)
        whole_number("queue", self.queue, 1, 100_000)
        number("max-seconds", self.seconds, 0.1, 24 * 3_600)


class Tokens:
    """Bearer tokens. Only their digests are kept; no tokens at all let everybody in."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str) -> bool:
        """Whether an Authorization header has one of the tokens. Takes as long whichever it is, or none."""
        scheme, _, token = authorization.partition(" ")
        digest = _digest(token.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return not matches or (scheme.lower() == "bearer" and any(matches))

    @classmethod
    def load(cls, file: Path | None) -> Tokens:
        """Tokens of a file, one a line, or else of the environment variable RCDEPLOY_SERVER_TOKEN.

        Raises RcdeployError when the file is missing or empty, or a token is too short to be a secret.
        """
        source = f"the environment variable {TOKEN_VARIABLE}"
        text = os.environ.get(TOKEN_VARIABLE, "")
        if file is not None:
            source = str(file)
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RcdeployError(
                    f"{file} cannot be read as a file of tokens: {error}", fix=f"Write one: {NEW_TOKEN} > {file}"
                ) from None
        tokens = text.split()
        if file is not None and not tokens:
            raise RcdeployError(f"{file} has no token", fix=f"Write one: {NEW_TOKEN} > {file}")
        if any(len(token) < MIN_TOKEN_CHARACTERS for token in tokens):
            raise RcdeployError(
                f"a token in {source} has fewer than {MIN_TOKEN_CHARACTERS} characters", fix=f"Make one: {NEW_TOKEN}"
            )
        return cls(tokens)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class ServerSettings:
    """batch_window_s: how long a request waits for others of its shape, to be drawn with them. url_s: how long an image
    is served under its url. cors_origins: whose web pages may ask. log_prompts: whether log lines carry prompts.
    decode_tile: pixels along a side of the tiles that images are decoded in; None decodes them whole."""

    limits: Limits = field(default_factory=Limits)
    tokens: Tokens = field(default_factory=Tokens)
    batch_window_s: float = 0.01
    url_s: float = 3_600.0
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False
    decode_tile: int | None = None

    def __post_init__(self) -> None:
        number("batch-window-ms", self.batch_window_s * 1_000, 0, 10_000)
        number("url-seconds", self.url_s, 1, 7 * 24 * 3_600)


def listening_socket(host: str, port: int, *, open_to_all: bool) -> socket.socket:
    """A bound socket; nothing listens on it yet. port: 0 takes a free one.

    open_to_all: whether requests need no token, and nobody said that they need none: loopback addresses alone then.

    Raises RcdeployError when the address is unknown, in use, or open to others without a token.
    """
    whole_number("port", port, 0, 65_535)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise RcdeployError(f"--host {host} is no address of this machine: {error}") from None
    if open_to_all and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise RcdeployError(
            f"--host {host} can be reached by other machines, and no token is set",
            fix=f"Set {TOKEN_VARIABLE}, or name a --token-file; --no-auth lets everybody in.",
        )
    listener = socket.socket(family, kind)
    if os.name == "posix":  # elsewhere it would share a port that is in use
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise RcdeployError(
            f"{host}:{port} cannot be listened on: {error.strerror}", fix="Try another --port."
        ) from None
    return listener
