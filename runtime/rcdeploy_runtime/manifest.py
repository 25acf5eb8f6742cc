"""manifest.json: the kind, contents and provenance of every folder that a stage writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from . import typed
from .errors import RcdeployError
from .files import inside, read_json, sha256, write_json

T = TypeVar("T")

SCHEMA_VERSION = 1
KINDS = ("prompt_pool", "latent_cache", "run", "decoder", "package", "evaluation")
NAME = "manifest.json"
TYPES = {
    "recipe": dict,
    "teacher": dict,
    "noise_schedule": dict,
    "latents": dict,
    "files": dict,
    "onnx": dict,
    "made_from": list,
    "facts": dict,
}
MAX_LISTED_ERRORS = 20


@dataclass
class Manifest:
    """The contents of a manifest.json.

    kind: one of KINDS. recipe: the resolved recipe it was made with. teacher: {"id", "revision"} (revision: a digest of
    its configuration and weights). noise_schedule: diffusers' scheduler config. latents: {"shape": [c, h, w],
    "scaling_factor"}. files: relative path -> {"sha256", "size"}. onnx: component -> inputs and outputs. made_from: the
    manifests it came from, {"kind", "sha256"}. facts: what only this kind knows.
    """

    kind: str
    recipe: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, str] = field(default_factory=dict)
    noise_schedule: dict[str, Any] = field(default_factory=dict)
    latents: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    onnx: dict[str, Any] = field(default_factory=dict)
    made_from: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        self.source = NAME
        """the file that it was read from, for messages; no field, so it is not written"""

    def facts_as(self, cls: type[T]) -> T:
        """`facts` as the frozen dataclass of this kind; keys that it lacks are ignored, defaults fill old manifests.

        Raises RcdeployError that names every key that is missing or of another type.
        """
        return typed.from_json(cls, self.facts, f"{self.source}: facts")

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the sha256 of the whole manifest, which holds the sha256 of every file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def add_file(self, folder: Path, relative: str) -> None:
        path = inside(folder, relative)
        self.files[relative] = {"sha256": sha256(path), "size": path.stat().st_size}

    def add_files(self, folder: Path, under: str = ".") -> None:
        """Add every file below folder/under, but the manifest itself."""
        for path in sorted((folder / under).rglob("*")):
            relative = path.relative_to(folder).as_posix()
            if path.is_file() and relative != NAME:
                self.add_file(folder, relative)

    def size_of(self, folder: str = "") -> int:
        """Bytes of the files listed below `folder`, a name inside the manifest's own; by default of all."""
        prefix = f"{folder}/" if folder else ""
        return sum(int(file["size"]) for name, file in self.files.items() if name.startswith(prefix))

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path, kind: str) -> Manifest:
        """Raises RcdeployError when the folder has no manifest, is of another kind, or of a newer schema."""
        if not (folder / NAME).is_file():
            raise RcdeployError(f"{folder} is no {kind} folder: it has no {NAME}")
        data = read_json(folder / NAME)
        if not isinstance(data, dict) or data.get("kind") not in KINDS:
            raise RcdeployError(f"{folder / NAME} is no manifest of rcdeploy")
        version = data.get("schema_version")
        if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
            raise RcdeployError(
                f"{folder / NAME} has schema version {version}; this rcdeploy reads up to {SCHEMA_VERSION}",
                fix="Upgrade rcdeploy.",
            )
        if data["kind"] != kind:
            fix = (
                f"Make one from it with: rcdeploy export {folder}"
                if (data["kind"], kind) == ("run", "package")
                else None
            )
            raise RcdeployError(f"{folder} is a {data['kind']}, not a {kind}", fix=fix)
        _check_types(data, folder / NAME)
        manifest = cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})
        manifest.source = str(folder / NAME)
        return manifest

    def wrong_files(self, folder: Path, *, contents: bool = True) -> list[str]:
        """Files that are missing, of another size or, with `contents`, of another digest."""
        return [
            name for name, expected in self.files.items() if not _is_whole(inside(folder, name), expected, contents)
        ]


def _is_whole(path: Path, expected: dict[str, Any], contents: bool) -> bool:
    if not path.is_file() or path.stat().st_size != expected["size"]:
        return False
    return not contents or sha256(path) == expected["sha256"]


def _check_types(data: dict[str, Any], source: Path) -> None:
    errors = [
        f"{key}: expected {'a list' if kind is list else 'an object'}"
        for key, kind in TYPES.items()
        if key in data and not isinstance(data[key], kind)
    ]
    files = data.get("files", {})
    for name, entry in files.items() if isinstance(files, dict) else ():
        size = entry.get("size") if isinstance(entry, dict) else None
        if type(size) is not int or size < 0 or not isinstance(entry.get("sha256"), str):
            errors.append(f"files.{name}: expected sha256 (a string) and size (bytes)")
    if errors:
        raise RcdeployError(f"{source} is damaged:", errors=errors[:MAX_LISTED_ERRORS])
