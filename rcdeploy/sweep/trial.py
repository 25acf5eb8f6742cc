"""Trials: one resolved recipe with one seed each, in a folder named after everything that its weights depend on.

So a trial that two variants, or two tables, have in common is trained once. Keys are digests of the recipe and of the
contents of the files that it names: where the files and the sweep are does not matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import NAME, Manifest

from ..recipe import PATHS, Recipe, digest
from ..run_folder import CHANGEABLE, read_metrics

KEY_DIGITS = 8
"""of a key, in the name of a folder"""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae", "scheduler", "tokenizer", "tokenizer_2")
"""folders of a diffusers model that images depend on; a judge or a card beside them changes nothing"""
COMPONENT_SUFFIXES = (".safetensors", ".json", ".txt")


@dataclass(frozen=True)
class Trial:
    """A recipe with a seed, trained and scored in `folder`.

    Attributes:
        key: 16 hex digits: a digest of everything that its weights depend on.
        path_key: the key that version 0.1 would have given, from paths relative to the current folder.
        is_teacher: the teacher itself, which is not trained, only scored.
    """

    key: str
    path_key: str
    recipe: Recipe
    seed: int
    folder: Path
    is_teacher: bool = False

    @property
    def steps(self) -> int:
        return 0 if self.is_teacher else self.recipe.train.max_steps

    @property
    def steps_done(self) -> int:
        """The last step in its metrics."""
        entries = read_metrics(self.folder)
        return min(entries[-1]["step"], self.steps) if entries else 0

    @property
    def train_seconds(self) -> float:
        """Of all its steps so far, without interruptions and the latent cache."""
        previous = 0
        seconds = 0.0
        for entry in read_metrics(self.folder):
            if "seconds_per_step" in entry:
                seconds += (entry["step"] - previous) * entry["seconds_per_step"]
                previous = entry["step"]
        return seconds

    def is_trained(self) -> bool:
        if self.is_teacher:
            return True
        return (self.folder / NAME).is_file() and bool(Manifest.read(self.folder, "run").facts.get("finished"))

    def file(self, extension: str) -> Path:
        """A file beside the folder: its log, its failure."""
        return self.folder.with_name(self.folder.name + extension)


class ContentDigests:
    """Digests of the contents of files and folders, each computed once."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def __call__(self, value: Any) -> Any:
        """A path, or a list of paths -> digests; what does not exist here (a name on the hub, "wordnet") stays."""
        if isinstance(value, list):
            return [self(v) for v in value]
        if not isinstance(value, str) or not Path(value).exists():
            return value
        if value not in self._digests:
            self._digests[value] = _content_digest(Path(value))
        return self._digests[value]


def _content_digest(path: Path) -> str:
    """sha256 of a file; of a folder a digest of its files, images by name and size only, as there may be many GB."""
    if path.is_file():
        return sha256(path)
    if (path / NAME).is_file():  # it lists the digests of the files
        return sha256(path / NAME)
    if (path / "model_index.json").is_file():
        parts = [p for c in COMPONENTS for p in sorted((path / c).glob("*")) if p.suffix in COMPONENT_SUFFIXES]
    else:
        parts = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return digest([[p.relative_to(path).as_posix(), _file_identity(p)] for p in parts])


def _file_identity(file: Path) -> str | int:
    return file.stat().st_size if file.suffix.lower() in IMAGE_SUFFIXES else sha256(file)


def relative_paths(value: Any) -> Any:
    """Absolute paths relative to the current folder: by these version 0.1 named trials."""
    if isinstance(value, list):
        return [relative_paths(v) for v in value]
    return os.path.relpath(value) if isinstance(value, str) and Path(value).is_absolute() else value


def weight_dependencies(recipe: Recipe, path_identity: Callable[[Any], Any]) -> dict[str, Any]:
    """The keys of a recipe that its student's weights depend on, paths replaced by their identity.

    Defaults are left out, so that a key that a later version adds changes no trial's name.
    """
    ignored = CHANGEABLE - PATHS - {("train", "max_steps")} | {("cache", "folder")}
    return {
        section: {
            key: path_identity(value) if (section, key) in PATHS else value
            for key, value in keys.items()
            if (section, key) not in ignored
        }
        for section, keys in recipe.model_dump(mode="json", exclude_defaults=True).items()
        if section not in ("name", "evaluate")
    }


def student_trial(recipe: Recipe, seed: int, runs: Path, contents: ContentDigests) -> Trial:
    key = digest(weight_dependencies(recipe, contents))
    path_key = digest(weight_dependencies(recipe, relative_paths))
    return Trial(key, path_key, recipe, seed, _folder(runs, recipe.name, key, path_key))


def teacher_trial(recipe: Recipe, runs: Path, contents: ContentDigests) -> Trial:
    teacher = recipe.teacher
    key = digest([contents(teacher.path), teacher.revision])
    path_key = digest([relative_paths(teacher.path), teacher.revision])
    return Trial(key, path_key, recipe, 0, _folder(runs, "teacher", key, path_key), is_teacher=True)


def _folder(runs: Path, name: str, key: str, path_key: str) -> Path:
    """runs/NAME-KEY; or the folder that version 0.1 made for the same trial, where there is one."""
    folder = runs / f"{name}-{key[:KEY_DIGITS]}"
    previous = runs / f"{name}-{path_key[:KEY_DIGITS]}"
    return previous if previous.is_dir() and not folder.is_dir() else folder
