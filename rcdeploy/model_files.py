"""Files of a model folder that may be copied elsewhere: known names only, and never through a link that leaves it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

COMPONENT_FILES = re.compile(
    r"(generation_|scheduler_|preprocessor_|tokenizer_)?config\.json|[\w.-]+\.safetensors(\.index\.json)?|"
    r"tokenizer\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.(json|jinja)|vocab\.(json|txt)|"
    r"merges\.txt|spiece\.model|sentencepiece\.bpe\.model"
)
"""Files that diffusers and transformers read of a component. Pickled weights and everything else stay behind."""


READ_SUFFIXES = (".json", ".safetensors", ".txt")
MAX_LISTED_TENSORS = 8


def check_component_files(folder: Path, components: Iterable[str]) -> None:
    """Raises RcdeployError for what has the name of a component's file and is none: reading a pipe never ends."""
    for component in components:
        for entry in sorted((folder / component).glob("*")):
            if entry.suffix in READ_SUFFIXES and not entry.is_file():
                raise RcdeployError(
                    f"{entry} is not a regular file", fix="Copy the model again, or remove it if it does not belong."
                )


def model_file(folder: Path, relative: str) -> Path:
    """folder / relative, a regular file inside the folder.

    Links are followed inside the folder, and from a snapshot of the hub's cache into the blobs beside it. Raises
    RcdeployError when the file is missing, is not a regular file, or is a link to somewhere else.
    """
    path = folder / relative
    target = path.resolve()
    roots = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        roots.append(folder.resolve().parent.parent / "blobs")
    if not any(target.is_relative_to(root) for root in roots):
        raise RcdeployError(
            f"{path} is a link to {target}, outside the model's folder: it is not copied",
            fix="Put the file itself there, if it belongs to the model.",
        )
    if not target.is_file():
        raise RcdeployError(f"{path} is missing" if not target.exists() else f"{path} is not a regular file")
    return path


def check_tensors(folder: Path, name: str, info: Mapping[str, Any], *, may_have_more: bool = False) -> None:
    """Raises RcdeployError for tensors that are absent, misshapen or, unless may_have_more, without a place.

    folder: of the model. name: of the component. info: of from_pretrained with output_loading_info.
    """
    problems = [f"{name} lacks the tensor {key}" for key in sorted(info["missing_keys"])]
    # position_ids is a buffer that older files hold and newer classes compute
    unexpected = [] if may_have_more else [key for key in info["unexpected_keys"] if "position_ids" not in key]
    problems += [f"{name} has no place for {key}" for key in unexpected]
    problems += [
        f"{name}: {key} has the shape {list(actual)}, not {list(expected)}"
        for key, actual, expected in info.get("mismatched_keys", ())
    ]
    if problems:
        raise RcdeployError(
            f"the weights of the {name} in {folder} do not fit its config.json",
            fix="Copy the folder again, or save it anew with save_pretrained.",
            errors=problems[:MAX_LISTED_TENSORS],
        )


def copy_component(folder: Path, component: str, target: Path) -> None:
    """Copies the files with known names of folder/component into the new folder `target`.

    Raises RcdeployError as model_file does.
    """
    source = folder / component
    if not source.is_dir():
        raise RcdeployError(f"{source} is missing or is not a folder")
    names = sorted(entry.name for entry in source.iterdir() if COMPONENT_FILES.fullmatch(entry.name))
    files = [model_file(folder, f"{component}/{name}") for name in names]
    target.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
