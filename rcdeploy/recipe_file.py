"""Reads a recipe from TOML: paths are anchored, --set overrides applied, everything that is wrong reported at once.

Paths in a recipe start at the recipe's own folder; paths given with --set at the current one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from .model_config import is_hub_name
from .recipe import HUB_NAMES, PATHS, SECTIONS, STAGES, WORDNET, Recipe
from .recipe_checks import check_sections
from .toml_files import nearest_name, raise_if_any, read_toml, validation_errors

MAX_PATH_BYTES, MAX_NAME_BYTES = 3000, 255
"""of a path and of a name in it, as file systems have them"""
REQUIRED_SECTIONS = ("teacher", "prompts")
NAME: TypeAdapter[str] = TypeAdapter(Annotated[str, Recipe.model_fields["name"]])


def load_recipe(file: Path, overrides: Sequence[str] = (), *, check_files: bool = True) -> Recipe:
    """The recipe in `file`, with every key resolved.

    Args:
        overrides: "section.key=value", the value as TOML (a bare word is a string).
        check_files: teacher and prompt files must exist.

    Raises:
        RcdeployError: with everything that is wrong, in `errors`.
    """
    data = read_toml(file, "recipe", fix="`rcdeploy recipes` lists the shipped ones.")
    raise_if_any(file, _impossible_paths(data))
    anchor_paths(data, file.resolve().parent)
    errors = [error for override in overrides or () if (error := _apply_override(data, override))]
    sections = _validate_sections(data, errors)
    errors += check_sections(sections, check_files)
    name = data.get("name", file.stem)
    try:
        NAME.validate_python(name)
    except ValidationError as error:
        errors.append(f"name: {error.errors()[0]['msg']}, not {name!r}; it becomes the name of a folder")
    raise_if_any(file, errors)
    return Recipe(name=name, **sections)


def _impossible_paths(data: Mapping[str, Any]) -> list[str]:
    """What no file system takes as a path, a sentence each: to look for it would be an error of Python."""
    errors = []
    for section, key in sorted(PATHS):
        keys = data.get(section)
        value = keys.get(key) if isinstance(keys, dict) else None
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str) and (
                "\0" in path
                or len(path.encode(errors="replace")) > MAX_PATH_BYTES
                or any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.split("/"))
            ):
                errors.append(f"{section}.{key}: {path[:60]!r} is no path: a zero in it, or a name that is too long")
    return errors


def anchor_paths(data: dict[str, Any], folder: Path) -> None:
    """Makes relative paths absolute, from `folder`; names on the hub and "wordnet" stay as they are."""
    for section, key in PATHS:
        if not isinstance(data.get(section), dict) or key not in data[section]:
            continue
        value = data[section][key]
        if (section, key) in HUB_NAMES and isinstance(value, str) and is_hub_name(value, folder):
            continue
        data[section][key] = _anchored(value, folder)


def _anchored(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_anchored(entry, folder) for entry in value]
    if not isinstance(value, str) or Path(value).is_absolute() or value == WORDNET:
        return value
    return str((folder / value).resolve())


def _apply_override(data: dict[str, Any], override: str) -> str | None:
    """Sets the key in `data`; returns what is wrong with the override, if anything is."""
    name, _, text = override.partition("=")
    section, _, key = name.strip().partition(".")
    if not text or not key:
        return f"--set {override}: write it as section.key=value"
    if section not in SECTIONS or not isinstance(data.setdefault(section, {}), dict):
        return f"--set {override}: there is no section {section!r}{nearest_name(section, SECTIONS)}"
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    data[section][key] = value
    if (section, key) in PATHS:
        if problems := _impossible_paths({section: {key: value}}):
            del data[section][key]
            return f"--set {problems[0]}"
        anchor_paths({section: data[section]}, Path.cwd())
    return None


def _validate_sections(data: dict[str, Any], errors: list[str]) -> dict[str, Any]:
    """The sections that are right in themselves; what is wrong with the others is appended to `errors`."""
    sections: dict[str, Any] = {}
    for section in data:
        if section not in SECTIONS and section != "name":
            errors.append(f"[{section}]: no such section{nearest_name(section, SECTIONS)}")
    for section, model in SECTIONS.items():
        if section not in data and section in REQUIRED_SECTIONS:
            errors.append(f"[{section}]: this section is needed")
            continue
        if section not in data and section in STAGES:
            continue
        try:
            sections[section] = model.model_validate(data.get(section, {}))
        except ValidationError as error:
            errors += validation_errors(error, model, prefix=section)
    return sections


def portable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe for other machines: absolute paths are reduced to their last name, the rest stays."""

    def without_folder(value: Any) -> Any:
        if isinstance(value, list):
            return [without_folder(entry) for entry in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {
        section: {key: without_folder(value) if (section, key) in PATHS else value for key, value in keys.items()}
        if isinstance(keys, dict)
        else keys
        for section, keys in recipe.items()
    }


def shipped_recipes() -> list[Path]:
    """The recipes that come with rcdeploy: beside the checkout, or inside the installed package."""
    here = Path(__file__).parent
    for folder in (here.parent / "recipes", here / "shipped_recipes"):
        if folder.is_dir():
            return sorted(folder.glob("*.toml"))
    return []
