"""TOML files that are validated by pydantic models: reading them, and their errors as sentences."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rcdeploy_runtime.errors import RcdeployError


def read_toml(file: Path, kind: str, fix: str | None = None) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        kind: what an error calls the file, e.g. "recipe".
        fix: where such files are found, for when this one does not exist.

    Raises:
        RcdeployError: when the file does not exist (with the nearest name that does) or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.toml")], 1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        raise RcdeployError(f"there is no {kind} {file}{hint}", fix=fix) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RcdeployError(f"{file} cannot be read as TOML: {error}") from None


def raise_if_any(file: Path, errors: Sequence[str], fix: str | None = None) -> None:
    """Raises RcdeployError that lists the errors of the file, if there are any."""
    if errors:
        plural = "s" if len(errors) > 1 else ""
        raise RcdeployError(f"{file} has {len(errors)} error{plural}", fix=fix, errors=tuple(errors))


def validation_errors(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """pydantic's errors as sentences: where, what is allowed, and the nearest right name.

    prefix: of the keys, e.g. the section's name.
    """
    return [_sentence(entry, model, prefix) for entry in error.errors()]


def _sentence(entry: Any, model: type[BaseModel], prefix: str) -> str:
    location = entry["loc"]
    where = ".".join([prefix, *map(str, location)] if prefix else map(str, location))
    fields = model.model_fields
    is_top_level = len(location) == 1
    if entry["type"] == "extra_forbidden":
        return f"{where}: no such key{nearest_name(location[-1], fields) if is_top_level else ''}"
    if entry["type"] == "missing":
        description = fields[location[0]].description if is_top_level else None
        return f"{where}: this key is needed{f' ({description})' if description else ''}"
    message = entry["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    actual = f", not {entry['input']!r}" if location else ""
    hint = ""
    if entry["type"] == "literal_error" and isinstance(entry["input"], str):
        hint = nearest_name(entry["input"], _literals(entry))
    return f"{where}: {message}{actual}{hint}"


def _literals(entry: Any) -> list[str]:
    """The allowed values of a literal error: pydantic has them as one string, "'a', 'b' or 'c'"."""
    expected = entry["ctx"]["expected"].replace(" or ", ", ")
    return [value.strip("'") for value in expected.split(", ")]


def nearest_name(name: Any, allowed: Iterable[str] | Mapping[str, Any]) -> str:
    """The end of a sentence about a wrong name: the most similar allowed one, or all of them."""
    near = difflib.get_close_matches(str(name), list(allowed), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(allowed)}"
