"""JSON objects as frozen dataclasses: every key is checked against the type that its field declares."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from .errors import RcdeployError

T = TypeVar("T")
JSON_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}


def from_json(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Make an instance of the dataclass `cls` from a JSON object.

    Fields may be str, int, float (which takes whole numbers too), bool, None, Any, unions of those, list, tuple, dict
    and Mapping with their parameters, and other dataclasses. Keys that `cls` lacks are ignored.

    Args:
        cls: the dataclass; a field without a default must be there.
        data: what json.loads returned.
        where: the file and the object in it, for messages.

    Raises:
        RcdeployError: a key is missing or has another type; all of them at once.
    """
    errors: list[str] = []
    value = _dataclass(cls, data, "", errors)
    if errors:
        raise RcdeployError(f"{where} does not have the expected contents:", errors=errors)
    return typing.cast(T, value)


def _dataclass(cls: Any, data: Mapping[str, Any], path: str, errors: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    values = {}
    for field in fields(cls):
        name = f"{path}{field.name}"
        if field.name in data:
            try:
                values[field.name] = _converted(hints[field.name], data[field.name], name, errors)
            except TypeError:
                found = _shortened(data[field.name])
                errors.append(f"{name}: expected {_described(hints[field.name])}, found {found}")
        elif field.default is MISSING and field.default_factory is MISSING:
            errors.append(f"{name}: missing (expected {_described(hints[field.name])})")
    return None if errors else cls(**values)


def _converted(hint: Any, value: Any, path: str, errors: list[str]) -> Any:
    """The value as `hint` declares it. Raises TypeError when it cannot be one."""
    origin = typing.get_origin(hint) or hint
    parameters = typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in parameters:
            try:
                return _converted(option, value, path, errors)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if value in parameters:
            return value
        raise TypeError
    if is_dataclass(origin):
        if isinstance(value, Mapping):
            return _dataclass(origin, value, f"{path}.", errors)
        raise TypeError
    if origin in (list, tuple, Sequence) and isinstance(value, list):
        return _sequence(origin, parameters, value, path, errors)
    if origin in (dict, Mapping) and isinstance(value, dict):
        inner = parameters[1] if parameters else Any
        return {str(key): _converted(inner, item, f"{path}.{key}", errors) for key, item in value.items()}
    if origin is float and type(value) in (int, float):
        return float(value)
    if type(value) is origin:
        return value
    raise TypeError


def _sequence(origin: Any, parameters: tuple[Any, ...], value: list[Any], path: str, errors: list[str]) -> Any:
    container = list if origin is list else tuple
    if not parameters:
        return container(value)
    if origin is tuple and parameters[-1] is not Ellipsis:
        if len(value) != len(parameters):
            raise TypeError
        hints = parameters
    else:
        hints = (parameters[0],) * len(value)
    return container(
        _converted(h, x, f"{path}[{i}]", errors) for i, (h, x) in enumerate(zip(hints, value, strict=True))
    )


def _described(hint: Any) -> str:
    """A type in JSON's words."""
    origin = typing.get_origin(hint) or hint
    parameters = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(option) for option in parameters)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, parameters))
    if origin is tuple and parameters and parameters[-1] is not Ellipsis:
        return f"a list of {len(parameters)}: " + ", ".join(_described(p) for p in parameters)
    if origin in (list, tuple, Sequence):
        return f"a list, each item {_described(parameters[0])}" if parameters else "a list"
    if origin in (dict, Mapping) or is_dataclass(origin):
        return "an object"
    return JSON_NAMES.get(origin, "any value")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
