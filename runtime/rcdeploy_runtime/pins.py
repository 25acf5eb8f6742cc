"""Pins: a package's digest, as an application writes it down to load that very package and no other.

It is the sha256 of the bytes of manifest.json (`sha256sum PACKAGE/manifest.json`), which has the sha256 of every file
that the runtime opens. README.md is not among them: a new model card leaves the digest as it was.
"""

from __future__ import annotations

import re
from pathlib import Path

from .errors import RcdeployError
from .files import sha256

PREFIX = "sha256:"


def manifest_digest(manifest: Path) -> str:
    """ "sha256:" and 64 hex digits of a manifest.json."""
    return PREFIX + sha256(manifest)


def check_digest(manifest: Path, expected: str | None, package: Path) -> None:
    """Raises RcdeployError, naming both digests, when a package's manifest.json is another than the expected one."""
    if expected is None:
        return
    actual = manifest_digest(manifest)
    if actual != expected.lower():
        raise RcdeployError(
            f"{package} is not the expected package: its digest is {actual}, not {expected.lower()}",
            fix="Get the package that belongs to this digest. If the change is intended, note the new digest instead.",
        )


def validate_digest(digest: object, verify: bool) -> None:
    """Raises RcdeployError for what is no digest of a package, and for one with which files would not be compared."""
    if digest is None:
        return
    if not isinstance(digest, str) or not re.fullmatch(PREFIX + r"[0-9a-f]{64}", digest.lower()):
        raise RcdeployError(
            f"digest is {digest!r}; it must be {PREFIX} and 64 hex digits",
            fix="Print the digest of a package that you trust with: rcdeploy package digest PACKAGE",
        )
    if not verify:
        raise RcdeployError("a digest vouches for the files of a package only when they are verified")
