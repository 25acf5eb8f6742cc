"""A package's .zip: only what its manifest lists is unpacked, and never more bytes than it says."""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from pathlib import Path

from .errors import RcdeployError
from .files import inside
from .limits import MAX_JSON_BYTES, MAX_PACKAGE_BYTES, MAX_PACKAGE_FILES
from .manifest import NAME, Manifest
from .pins import check_digest

CHUNK_BYTES = 2**20
MAX_COMPRESSION = 100
SMALL_ARCHIVE_BYTES = 64 * 2**20
"""unpack whatever their compression is"""
COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""others decompress without a bound on memory"""
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, LookupError, RuntimeError, OverflowError)
"""what zipfile raises for a damaged or encrypted archive"""


def unpack(archive: Path, folder: Path, digest: str | None = None) -> None:
    """Unpack what the manifest lists into `folder`, which is to be checked afterwards.

    Raises RcdeployError when the archive is damaged, is no package, is not that of `digest`, or would need more room
    than its manifest says.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            _unpack(packed, archive, folder, digest)
    except DAMAGED as error:
        raise RcdeployError(f"{archive} cannot be unpacked: {error}", fix="Copy the archive again.") from None
    except OSError as error:
        raise RcdeployError(
            f"{archive} cannot be unpacked to {folder}: {error.strerror or error}",
            fix="Free some room there, or unpack it yourself and load the folder.",
        ) from None


def _unpack(packed: zipfile.ZipFile, archive: Path, folder: Path, digest: str | None) -> None:
    names = [info.filename for info in packed.infolist() if not info.is_dir()]
    if len(names) > MAX_PACKAGE_FILES:
        raise RcdeployError(f"{archive} holds {len(names):,} files; a package has at most {MAX_PACKAGE_FILES:,}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RcdeployError(f"{archive} holds {twice!r} more than once")
    # one folder around everything is allowed, as archivers make it
    manifests = [n for n in names if n == NAME or n.endswith("/" + NAME) and n.count("/") == 1]
    if len(manifests) != 1:
        raise RcdeployError(
            f"{archive} is no package: it has no {NAME}", fix="Make one with: rcdeploy export RUN --zip"
        )
    prefix = manifests[0].removesuffix(NAME)
    _extract(packed, manifests[0], folder / NAME, MAX_JSON_BYTES)
    check_digest(folder / NAME, digest, archive)
    manifest = Manifest.read(folder, "package")
    _check_room(archive, manifest.size_of(), folder)
    members = set(names)
    for name, expected in manifest.files.items():
        if prefix + name not in members:
            raise RcdeployError(f"{archive}: {name} is missing", fix="Copy the archive again.")
        _extract(packed, prefix + name, inside(folder, name), int(expected["size"]))


def _check_room(archive: Path, size: int, folder: Path) -> None:
    if size > MAX_PACKAGE_BYTES:
        raise RcdeployError(f"{archive} would unpack to more than {MAX_PACKAGE_BYTES:,} bytes")
    if size > MAX_COMPRESSION * archive.stat().st_size + SMALL_ARCHIVE_BYTES:
        raise RcdeployError(
            f"{archive} would unpack to {size:,} bytes, more than {MAX_COMPRESSION} times its own size: weights do not "
            "compress like that",
        )
    if size > (free := shutil.disk_usage(folder).free):
        raise RcdeployError(
            f"{archive} needs {size:,} bytes in {folder.parent}, where {free:,} are free",
            fix="Free some room there, set TMPDIR, or unpack it yourself and load the folder.",
        )


def _extract(packed: zipfile.ZipFile, name: str, path: Path, limit: int) -> None:
    if packed.getinfo(name).compress_type not in COMPRESSION:
        raise RcdeployError(f"{packed.filename}: {name} is neither stored nor deflated", fix="Make the archive anew.")
    path.parent.mkdir(parents=True, exist_ok=True)
    remaining = limit
    with packed.open(name) as source, path.open("wb") as target:
        while chunk := source.read(min(CHUNK_BYTES, remaining + 1)):
            remaining -= len(chunk)
            if remaining < 0:
                raise RcdeployError(f"{packed.filename}: {name} is larger than its manifest says")
            target.write(chunk)
