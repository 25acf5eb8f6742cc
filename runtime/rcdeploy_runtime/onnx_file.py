"""External files and operators of an ONNX file, read without onnx and without its weights.

The protobuf is walked by hand, so that a device needs no onnx: ModelProto.graph (7) and functions (25), their nodes (1)
with operator (4) and attributes (5), initializers (5) and sub-graphs; TensorProto.external_data (13) of key (1) and
value (2). The bytes of tensors are stepped over: a graph of a gigabyte is read in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .errors import RcdeployError
from .limits import MAX_PROTOBUF_BYTES

SMALL_BYTES = 1 << 16
"""a message below this is read at once; of a larger one only what is walked"""
MAX_DEPTH = 60
MAX_HEADER_BYTES = 20
"""of a field: two varints of at most ten bytes"""

# message -> {field number: message inside it}
NESTED = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}


@dataclass
class OnnxContents:
    """external_files: where tensors outside the model lie ("location"). operators: the names of all node types."""

    external_files: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)


def read_onnx(path: Path) -> OnnxContents:
    """Raises RcdeployError when the file is no ONNX model."""
    size = path.stat().st_size
    if size > MAX_PROTOBUF_BYTES:
        raise RcdeployError(f"{path} is larger than a protobuf can be")
    contents = OnnxContents()
    try:
        with path.open("rb") as file:
            _walk(_Source(file, size), 0, size, "model", contents, 0)
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise RcdeployError(f"{path} is no ONNX model: {error}", fix="Copy it again, or export it anew.") from None
    return contents


class _Source:
    """Bytes by position: of a file, or of a part of it that is in memory."""

    def __init__(self, data: BinaryIO | bytes, size: int) -> None:
        self.data = data
        self.size = size

    def read(self, start: int, count: int) -> bytes:
        if isinstance(self.data, bytes):
            return self.data[start : start + count]
        self.data.seek(start)
        return self.data.read(count)


def _walk(source: _Source, start: int, end: int, message: str, contents: OnnxContents, depth: int) -> None:
    """Add to `contents` what the message at start..end holds."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if end - start <= SMALL_BYTES and not isinstance(source.data, bytes):
        source = _Source(source.read(start, end - start), end - start)
        start, end = 0, source.size
    entry: dict[str, str] = {}
    for number, first, last in _fields(source, start, end):
        inner = NESTED[message].get(number)
        if inner == "operator":
            contents.operators.add(_text(source, first, last))
        elif inner in ("key", "value"):
            entry[inner] = _text(source, first, last)
        elif inner:
            _walk(source, first, last, inner, contents, depth + 1)
    if entry.get("key") == "location":
        contents.external_files.add(entry.get("value", ""))


def _text(source: _Source, start: int, end: int) -> str:
    if end - start > SMALL_BYTES:
        raise ValueError("a name is too long")
    return source.read(start, end - start).decode()


def _fields(source: _Source, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, end) of the length-delimited fields of a message; the others are stepped over."""
    at = start
    while at < end:
        header = source.read(at, min(MAX_HEADER_BYTES, end - at))
        tag, used = _varint(header, 0)
        kind = tag & 7
        if kind == 0:
            _, used = _varint(header, used)
            at += used
        elif kind == 1:
            at += used + 8
        elif kind == 5:
            at += used + 4
        elif kind == 2:
            length, used = _varint(header, used)
            at += used
            if length > end - at:
                raise ValueError("a field is longer than the file")
            yield tag >> 3, at, at + length
            at += length
        else:
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("it ends in the middle of a field")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")
