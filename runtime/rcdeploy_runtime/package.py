"""A package is data: opened, checked, and nothing in it executed, unpickled, or read from outside its folder."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import RcdeployError
from .files import inside, read_json, sha256, user_cache, write_json
from .manifest import NAME, Manifest

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
MAX_JSON_BYTES = 64 * 2**20
MAX_BYTES = 64 * 2**30
"""more than any package of ours; a number that a manifest or an archive must stay below before anything is allocated"""


class Package:
    """An opened package.

    folder: where its files lie (a .zip is unpacked into a private temporary folder that goes when the package does).
    manifest: what it says of itself; facts["format"] is onnx, openvino or trt.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        """verify: compare every file with its sha256 in the manifest (remembered per file until it changes).

        Raises RcdeployError that names the file when the package is wrong, truncated, newer or foreign.
        """
        path = Path(path)
        if path.is_file() and zipfile.is_zipfile(path):
            self.folder = Path(tempfile.mkdtemp(prefix="rcdeploy-"))
            self._cleanup = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
            _unpack(path, self.folder)
        elif path.is_dir():
            self.folder = path
        else:
            raise RcdeployError(
                f"{path} is no package: {'not a zip archive' if path.is_file() else 'nothing is there'}",
                fix="Make one with: rcdeploy export RUN",
            )
        self.path = path
        if not (self.folder / NAME).is_file() and (self.folder / "model_index.json").is_file():
            raise RcdeployError(
                f"{path} is a diffusers or Optimum folder, not a package: it has no {NAME}",
                fix=f"Make one from it with: rcdeploy export {path}",
            )
        _bounded(self.folder / NAME)
        self.manifest = Manifest.read(self.folder, "package")
        self.format = str(self.manifest.facts.get("format", ""))
        if self.format not in ("onnx", "openvino", "trt"):
            raise RcdeployError(f"{path} has the format {self.format!r}", fix="Upgrade rcdeploy-runtime.")
        self._check(verify)

    def _check(self, verify: bool) -> None:
        remembered = _Remembered() if verify else None
        total = 0
        for name, expected in self.manifest.files.items():
            file = inside(self.folder, name)
            if not file.is_file():
                raise RcdeployError(f"{self.path}: {name} is missing", fix="Copy the whole package again.")
            size = file.stat().st_size
            total += size
            if size != expected["size"] or total > MAX_BYTES:
                raise RcdeployError(
                    f"{self.path}: {name} has {size:,} bytes, its manifest says {expected['size']:,}",
                    fix="It was cut short or changed. Copy the whole package again.",
                )
            if remembered and remembered.digest(file) != expected["sha256"]:
                raise RcdeployError(
                    f"{self.path}: the contents of {name} are not those that were packed",
                    fix="It was damaged or changed. Copy the whole package again, or export it anew.",
                )
            if file.suffix == ".onnx":
                for location in external_files(file):
                    listed = str((Path(name).parent / location).as_posix())
                    inside(file.parent, location)
                    if listed not in self.manifest.files:
                        raise RcdeployError(f"{self.path}: {name} wants {location!r}, which is not in the package")
        if remembered:
            remembered.keep()
        needed = [f"{c}/" for c in COMPONENTS[:3]] + ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"]
        for start in needed:
            if not any(name.startswith(start) for name in self.manifest.files):
                raise RcdeployError(f"{self.path}: its manifest lists no {start}", fix="Export it anew.")

    def json(self, relative: str) -> dict[str, Any]:
        """A JSON file that the manifest lists."""
        if relative not in self.manifest.files:
            raise RcdeployError(f"{self.path}: {relative} is not in its manifest")
        data = read_json(_bounded(inside(self.folder, relative)))
        if not isinstance(data, dict):
            raise RcdeployError(f"{self.path}: {relative} holds no object")
        return data


def _bounded(file: Path) -> Path:
    if file.is_file() and file.stat().st_size > MAX_JSON_BYTES:
        raise RcdeployError(f"{file} is too large to be what it is called ({file.stat().st_size:,} bytes)")
    return file


def _unpack(archive: Path, folder: Path) -> None:
    """Files that the manifest lists, no more bytes than it says, none outside the folder; then they are checked."""
    with zipfile.ZipFile(archive) as packed:
        # one folder around everything is allowed, as archivers make it
        names = [i.filename for i in packed.infolist() if not i.is_dir()]
        manifests = [n for n in names if n == NAME or n.endswith("/" + NAME) and n.count("/") == 1]
        if len(manifests) != 1:
            raise RcdeployError(
                f"{archive} is no package: it has no {NAME}", fix="Make one with: rcdeploy export RUN --zip"
            )
        prefix = manifests[0].removesuffix(NAME)
        _extract(packed, manifests[0], folder / NAME, MAX_JSON_BYTES)
        manifest = Manifest.read(folder, "package")
        if sum(int(f["size"]) for f in manifest.files.values()) > MAX_BYTES:
            raise RcdeployError(f"{archive} would unpack to more than {MAX_BYTES:,} bytes")
        for name, expected in manifest.files.items():
            if prefix + name not in names:
                raise RcdeployError(f"{archive}: {name} is missing", fix="Copy the archive again.")
            _extract(packed, prefix + name, inside(folder, name), int(expected["size"]))


def _extract(packed: zipfile.ZipFile, name: str, to: Path, limit: int) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with packed.open(name) as source, to.open("wb") as sink:
            left = limit
            while chunk := source.read(min(2**20, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise RcdeployError(f"{packed.filename}: {name} is larger than its manifest says")
                sink.write(chunk)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise RcdeployError(
            f"{packed.filename}: {name} cannot be unpacked: {error}", fix="Copy the archive again."
        ) from None


class _Remembered:
    """Digests of files by place, size and time of change, kept in the user's cache folder."""

    def __init__(self) -> None:
        self.file = user_cache() / "digests.json"
        self.known: dict[str, str] = {}
        self.new = False
        try:
            known = json.loads(self.file.read_text())
            self.known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            self.known = {}  # no cache, or a broken one: everything is read again

    def digest(self, file: Path) -> str:
        about = file.stat()
        key = f"{file.resolve()}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}:{about.st_ctime_ns}"
        if key not in self.known:
            self.known[key], self.new = sha256(file), True
        return self.known[key]

    def keep(self) -> None:
        if self.new:
            try:
                write_json(self.file, dict(list(self.known.items())[-1000:]))
            except (RcdeployError, OSError):
                return  # a read-only device works too: the digests are computed again next time


def external_files(model: Path) -> set[str]:
    """Files that an ONNX model's tensors lie in outside it (external_data's "location").

    Walks the protobuf by hand, so that a device needs no onnx: ModelProto.graph (7) and functions (25), their nodes (1)
    with attributes (5), initializers (5) and sub-graphs; TensorProto.external_data (13) of key (1) and value (2).
    """
    if model.stat().st_size > 2**31:
        raise RcdeployError(f"{model} is larger than a protobuf can be")
    found: set[str] = set()
    try:
        _walk(memoryview(model.read_bytes()), "model", found, 0)
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise RcdeployError(f"{model} is no ONNX model: {error}", fix="Copy it again, or export it anew.") from None
    return found


# message -> {field number: message inside it}
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}


def _walk(data: memoryview, message: str, found: set[str], depth: int) -> None:
    if depth > 60:
        raise ValueError("nested too deeply")
    entry: dict[int, str] = {}
    for number, value in _fields(data):
        if message == "entry":
            entry[number] = bytes(value).decode()
        elif number in _INSIDE[message]:
            _walk(value, _INSIDE[message][number], found, depth + 1)
    if entry.get(1) == "location":
        found.add(entry.get(2, ""))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Length-delimited fields of a protobuf message; the others are stepped over."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _varint(data, at)
            if size > end - at:
                raise ValueError("a field is longer than the file")
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("it ends in the middle of a field")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
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
