"""Files and folders that are whole or not there at all: written beside their place, synced, then renamed.

The rename comes after the contents have reached the disk, and is synced itself, so that a power cut leaves the old
contents or the new ones.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import RcdeployError

HASH_CHUNK_BYTES = 2**20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`; what is written there takes its place when the block ends well, else it is removed.

    Several processes and threads may do so at once: no two have the same name. A full disk becomes an RcdeployError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, renamed to `path` when the block ends well; a folder there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        beside.mkdir()
        yield beside
        for entry in [*beside.rglob("*"), beside]:
            sync(entry)
        if path.exists():
            path.replace(old)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk. Not where the system cannot (Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear_up(path: Path) -> None:
    """Remove the partial folders of killed processes beside `path`; restore a folder that was moved away last."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        _, pid, suffix = stale.name.rsplit(".", 2)
        if suffix not in ("part", "old") or not pid.isdigit() or is_running(int(pid)):
            continue
        if suffix == "old" and not path.exists():
            stale.replace(path)
        else:
            shutil.rmtree(stale, ignore_errors=True)


def remove_new(new: list[Path]) -> None:
    """Remove a folder that failed to become whole, and the folders above it that were made for it and are empty.

    new: those of [folder, its parent, ...] that were not there before.
    """
    for folder in new[:1]:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in new[1:]:
        with suppress(OSError):
            parent.rmdir()


def is_running(pid: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _disk_error(path: Path, error: OSError) -> RcdeployError:
    return RcdeployError(
        f"cannot write {path}: {error.strerror or error}",
        fix="Free some room, or correct the permissions, and run the same command again.",
    )


def user_cache() -> Path:
    """The folder of what can be computed again; it may not exist yet.

    Raises RcdeployError where the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcdeploy"
    except RuntimeError:
        raise RcdeployError("there is no home folder", fix="Set HOME or XDG_CACHE_HOME.") from None


def write_json(path: Path, data: Any) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The contents of a JSON file. Raises RcdeployError when it is missing, unreadable, or not JSON."""
    if path.exists() and not path.is_file():
        raise RcdeployError(f"{path} is no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RcdeployError(f"{path} is missing") from None
    except OSError as error:
        raise RcdeployError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise RcdeployError(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise RcdeployError(f"{path} is not JSON that can be read: it is nested too deeply") from None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):  # hashlib.file_digest is Python 3.11's
            digest.update(chunk)
    return digest.hexdigest()


def inside(folder: Path, relative: str) -> Path:
    """folder / relative. Raises RcdeployError when that would leave the folder (.., an absolute path, a link)."""
    path = folder / relative
    try:
        stays = not Path(relative).is_absolute() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a name with a zero byte, too long, or a circle of links
        raise RcdeployError(f"{relative[:200]!r} is no path below {folder}: {error}") from None
    if not stays:
        raise RcdeployError(f"{relative!r} points outside {folder}")
    return path
