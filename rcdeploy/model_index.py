"""model_index.json of any diffusers folder, checked before a library opens it. Imports no torch.

diffusers runs Python files of a folder when its model_index.json asks for them, and reads through links and paths that
lead elsewhere. What passes here names classes of diffusers and transformers only, and files inside the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256

from .model_config import read_config
from .model_files import COMPONENT_FILES, model_file

MODEL_INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
NOT_FOR_TEXT = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
"""components that text-to-image does without"""
REFUSED_KEYS = ("quantization_config", "attn_implementation", "_attn_implementation")
"""of config files: other libraries would read the weights; transformers would fetch and run a kernel"""
MAX_VALUES = {"sample_size": 1_024, "pos_embed_max_size": 1_024, "num_layers": 1_000, "num_hidden_layers": 1_000}
"""of a network's config.json: it computes position embeddings and builds layers before it reads a tensor"""
REFUSED_FILES = ("adapter_config.json",)
"""transformers would load another model, which it names"""
_FIX = "Take the folder as save_pretrained of the pipeline writes it, from a source that you trust."


@dataclass(frozen=True)
class ModelIndex:
    """A pipeline as its model_index.json describes it.

    Attributes:
        pipeline: the class's name.
        components: of those that text-to-image needs, library (one of LIBRARIES) and name of the class.
        settings: further arguments of the pipeline: numbers and texts; None for components that are absent.
    """

    folder: Path
    pipeline: str
    components: dict[str, tuple[str, str]]
    settings: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> ModelIndex:
        """Raises RcdeployError for other libraries' classes, and for files that are missing, elsewhere or refused."""
        index = read_config(model_file(folder, MODEL_INDEX))
        pipeline = index.get("_class_name")
        if not _is_identifier(pipeline):
            raise _refused(folder, f"its pipeline is {pipeline!r}, and only diffusers' own are opened")
        components, settings = {}, {}
        for name, value in index.items():
            if name.startswith("_"):
                continue
            if not name.isidentifier():
                raise _refused(folder, f"{name!r} is no name of a component")
            if not _is_component(value):
                settings[name] = _plain_setting(folder, name, value)
            elif value == [None, None] or name in NOT_FOR_TEXT:
                settings[name] = None
            else:
                components[name] = _class_of(folder, name, value)
        for name in components:
            _check_component(folder, name)
        return cls(folder, str(pipeline), components, settings)

    @property
    def revision(self) -> str:
        """Digest of model_index.json and of the components' files: models with the same revision are the same."""
        files = [self.folder / MODEL_INDEX, *(file for name in self.components for file in _files(self.folder, name))]
        digests = {file.relative_to(self.folder).as_posix(): sha256(file) for file in files}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def _refused(folder: Path, reason: str) -> RcdeployError:
    return RcdeployError(f"{folder / MODEL_INDEX}: {reason}", fix=_FIX)


def _is_identifier(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and not value.startswith("_")


def _is_component(value: Any) -> bool:
    """Whether it is [library, class], or [null, null] for a component that is absent."""
    return isinstance(value, list) and len(value) == 2 and all(x is None or isinstance(x, str) for x in value)


def _plain_setting(folder: Path, name: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if not all(x is None or isinstance(x, str | int | float) for x in values):
        raise _refused(folder, f"{name} is {str(value)[:100]}, neither [library, class] nor a number, text or flag")
    return value


def _class_of(folder: Path, name: str, value: list[str]) -> tuple[str, str]:
    library, class_name = value
    if library not in LIBRARIES:
        raise _refused(folder, f"{name} is of the library {library!r}; allowed are {' and '.join(LIBRARIES)}")
    if not _is_identifier(class_name):
        raise _refused(folder, f"the class of {name} is {class_name!r}")
    return library, class_name


def _files(folder: Path, component: str) -> Iterator[Path]:
    """Regular files of a component, those in its sub-folders too.

    Raises RcdeployError for what lies outside `folder` or is no file, whatever its name: libraries look for many.
    """
    for entry in sorted((folder / component).rglob("*")):
        relative = entry.relative_to(folder).as_posix()
        if entry.is_symlink() or not entry.is_dir():
            yield model_file(folder, relative)


def _check_component(folder: Path, component: str) -> None:
    """Raises RcdeployError for files that lie elsewhere, that are refused, or that an index of shards lacks."""
    if not (folder / component).is_dir():
        raise RcdeployError(f"{folder} has no folder {component}", fix="Copy the whole model again.")
    for file in _files(folder, component):
        if file.name in REFUSED_FILES:
            raise RcdeployError(f"{file} is not opened: it names another model", fix="Merge the adapter, or remove it.")
        if file.name.endswith("config.json") and (key := _refused_key(read_config(file))):
            raise RcdeployError(
                f"{file} has {key}: code outside of diffusers and transformers would be needed",
                fix="Take the model's weights in fp32, fp16 or bf16, and leave the key out.",
            )
        if file.name == "config.json" and component != "vae":  # whose sample_size is in pixels, and computes nothing
            _check_values(file)
        if file.name.endswith(".safetensors.index.json"):
            _check_shards(folder, component, file)


def _refused_key(config: Any) -> str | None:
    """The first of REFUSED_KEYS that has a value, anywhere in a config."""
    if isinstance(config, list):
        return next((key for x in config if (key := _refused_key(x))), None)
    if not isinstance(config, dict):
        return None
    own = (key for key in REFUSED_KEYS if config.get(key) is not None)
    return next(own, None) or _refused_key(list(config.values()))


def _check_values(file: Path) -> None:
    for key, value in read_config(file).items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(x, int | float) and x > MAX_VALUES.get(key, x) for x in values):
            raise RcdeployError(
                f"{file}: {key} is {str(value)[:100]}; up to {MAX_VALUES[key]:,} is allowed",
                fix="Compare it with the original.",
            )


def _check_shards(folder: Path, component: str, file: Path) -> None:
    weight_map = read_config(file).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else {None}
    for name in names:
        if not isinstance(name, str) or not COMPONENT_FILES.fullmatch(name) or not name.endswith(".safetensors"):
            raise RcdeployError(f"{file} names {str(name)[:100]!r}, no .safetensors file beside it", fix=_FIX)
        model_file(folder, f"{component}/{name}")
