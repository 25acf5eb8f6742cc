"""Choices that are kept: a small JSON in the user's cache folder, under the package's digest and the machine; beside it
what OpenVINO compiles for that choice.

Never in the package: what its manifest does not list is not loaded. A file that was made for another package, on
another machine or with other versions is ignored, as is one that cannot be read.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import RcdeployError
from .files import read_json, user_cache, write_json
from .limits import MAX_TUNING_BYTES, MAX_TUNING_FILES
from .machine import Machine, this_machine, versions
from .package import Package
from .session_options import SessionOptions
from .typed import from_json

SCHEMA_VERSION = 1
FOLDER = "tunings"


@dataclass(frozen=True)
class Tuning:
    """What a tuning found.

    Attributes:
        package: its digest.
        machine, versions: where it was measured, and with what.
        options: the fastest, of those whose images are those of the reference; the default ones where nothing pays.
        seconds: of an image, the median. speedup: how many times as fast as the package's own options that was.
        grey_levels: how much its images differ, of 255.
    """

    schema_version: int
    package: str
    machine: Machine
    versions: Mapping[str, str]
    options: SessionOptions
    seconds: float
    speedup: float
    grey_levels: float

    def __str__(self) -> str:
        if self.options == SessionOptions():
            return "nothing is faster than the default"
        return f"{self.options}; when measured, {self.speedup:.2f} times as fast as the default"


def keep(tuning: Tuning) -> Path:
    """Write a tuning into the user's cache folder, whole or not at all. Raises RcdeployError where that cannot be."""
    file = _folder(tuning.package) / f"{tuning.machine.key}.json"
    shutil.rmtree(compiled_folder(tuning), ignore_errors=True)  # of other options or versions
    write_json(file, asdict(tuning))
    return file


def compiled_folder(tuning: Tuning) -> Path:
    """Of what OpenVINO compiles of a tuned package, beside its tuning."""
    return _folder(tuning.package) / f"{tuning.machine.key}-compiled"


def kept_tuning(package: Package) -> Tuning | None:
    """What was kept for this package on this machine. A tuning that is not for here is a warning, and not taken."""
    try:
        folder = _folder(package.digest)
    except RcdeployError:  # no home folder, so nothing was kept
        return None
    if not folder.is_dir():
        return None
    try:
        machine = this_machine()
        file = folder / f"{machine.key}.json"
        if not file.exists():  # of other machines, which share the folder or from which it was copied
            others = sorted(folder.glob("*.json"))[:MAX_TUNING_FILES]
            if not others:
                return None
            file = others[0]
        tuning = _read(file, package.format)
        reason = _foreign(tuning, package.digest, machine)
    except (RcdeployError, OSError) as error:
        reason = error.message if isinstance(error, RcdeployError) else str(error)
    if reason:
        warnings.warn(f"{package.path}: its tuning is ignored: {reason}. `tune` measures anew.", stacklevel=4)
        return None
    return tuning


def _folder(digest: str) -> Path:
    return user_cache() / FOLDER / digest.removeprefix("sha256:")


def _read(file: Path, package_format: str) -> Tuning:
    """Raises RcdeployError for a file that is too large, no JSON, or has a key or an option that cannot be."""
    if file.is_file() and file.stat().st_size > MAX_TUNING_BYTES:
        raise RcdeployError(f"{file} is too large to be a tuning ({file.stat().st_size:,} bytes)")
    data = read_json(file)
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise RcdeployError(f"{file} is no tuning of this version of rcdeploy")
    try:
        tuning = from_json(Tuning, data, str(file))
        tuning.options.checked(package_format)
    except RcdeployError as error:
        raise RcdeployError(f"{file} cannot be used: {'; '.join(error.errors) or error.message}") from None
    figures = (tuning.seconds, tuning.speedup)
    if not all(math.isfinite(x) and x > 0 for x in figures) or tuning.options.memory_gb is not None:
        raise RcdeployError(f"{file} cannot be used: its values are out of range")
    return tuning


def _foreign(tuning: Tuning, digest: str, machine: Machine) -> str | None:
    """Why a tuning is not for this package, here and now; None where it is."""
    if tuning.package != digest:
        return f"it was made for another package ({tuning.package[:20]}...)"
    if tuning.machine != machine:
        return f"it was made on another machine ({_changes(asdict(tuning.machine), asdict(machine))})"
    if tuning.versions != (current := versions()):
        return f"it was made with other versions ({_changes(tuning.versions, current)})"
    return None


def _changes(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """ "cores: 8, here 4"."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name}: {_text(before.get(name))}, here {_text(now.get(name))}" for name in names)[:300]


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " and ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
