"""Copies a component of a diffusers folder: files with known names only, none through a link out of the folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

COMPONENT_FILES = re.compile(
    r"config\.json|generation_config\.json|scheduler_config\.json|preprocessor_config\.json|[\w.-]+\.safetensors|"
    r"[\w.-]+\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|"
    r"added_tokens\.json|chat_template\.(?:json|jinja)|vocab\.(?:json|txt)|merges\.txt|spiece\.model|"
    r"sentencepiece\.bpe\.model"
)
"""Files that diffusers and transformers read of a component. Pickled weights and everything else stay behind."""


def component_files(folder: Path, component: str) -> list[Path]:
    """The regular files of folder/component that diffusers and transformers read, sorted.

    Raises RcdeployError for a link that leads out of `folder`, and for an entry with a known name that is not a file.
    """
    root = folder.resolve()
    if not (folder / component).resolve().is_relative_to(root):
        raise RcdeployError(f"{folder / component} is a link that leads out of {folder}", fix="Copy what it points to.")
    files = []
    for file in sorted((folder / component).iterdir()):
        if not COMPONENT_FILES.fullmatch(file.name):
            continue
        if not file.resolve().is_relative_to(root) and not _is_hub_snapshot_link(file):
            raise RcdeployError(f"{file} is a link that leads out of {folder}", fix="Copy what it points to.")
        if not file.is_file():
            raise RcdeployError(f"{file} is not a regular file", fix="Copy the folder again.")
        files.append(file)
    return files


def _is_hub_snapshot_link(file: Path) -> bool:
    """The hub's cache keeps a snapshot's files as links into blobs/, beside snapshots/ in the repository's folder."""
    snapshots = next((parent for parent in file.absolute().parents if parent.name == "snapshots"), None)
    return snapshots is not None and file.resolve().parent == (snapshots.parent / "blobs").resolve()


def copy_component(folder: Path, component: str, target: Path) -> None:
    """Copies the component's known files into the new folder `target`."""
    target.mkdir(parents=True)
    for file in component_files(folder, component):
        shutil.copyfile(file, target / file.name)
