"""Files and folders that are whole or not there at all: written beside their place, then renamed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import RcdeployError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`; what is written there takes its place when the block ends well, else it is removed.

    Several processes may do so at once: the name carries the process id. A full disk becomes an RcdeployError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, renamed to `path` when the block ends well; a folder there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(path)
    beside, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        beside.mkdir()
        yield beside
        if path.exists():
            path.replace(old)
        beside.replace(path)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _clear_up(path: Path) -> None:
    """Removes what processes that were killed left beside `path`; brings back a folder that was moved away last."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        _, pid, end = left.name.rsplit(".", 2)
        if end not in ("part", "old") or not pid.isdigit() or is_running(int(pid)):
            continue
        if end == "old" and not path.exists():
            left.replace(path)
        else:
            shutil.rmtree(left, ignore_errors=True)


def remove_new(new: list[Path]) -> None:
    """Removes a folder that failed to become whole, and the folders above it that were made for it and are empty.

    new: those of [folder, its parent, ...] that were not there before.
    """
    for folder in new[:1]:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in new[1:]:
        with suppress(OSError):
            parent.rmdir()


def is_running(pid: int) -> bool:
    """Is there a process of this number on this machine, ourselves left out?"""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _disk_error(path: Path, error: OSError) -> RcdeployError:
    return RcdeployError(
        f"cannot write {path}: {error.strerror or error}",
        fix="Free some room (or mend the permissions) and run the same command again: finished parts are kept.",
    )


def user_cache() -> Path:
    """Where what can be computed again is kept for the next time; the folder may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcdeploy"


def write_json(path: Path, data: Any) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises RcdeployError when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RcdeployError(f"{path} is missing") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise RcdeployError(f"{path} is not JSON: {error}") from None


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def inside(folder: Path, relative: str) -> Path:
    """folder / relative. Raises RcdeployError when that would leave the folder (.., an absolute path, a link)."""
    path = folder / relative
    if Path(relative).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise RcdeployError(f"{relative!r} points outside {folder}")
    return path
