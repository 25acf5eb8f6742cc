"""Hostile zip archives of a package."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from .mutate import harmed

CENTRAL, END = b"PK\x01\x02", b"PK\x05\x06"


def hostile_archive(folder: Path, archive: Path, random: Random) -> str:
    """Write `archive` from the package in `folder`; returns what is wrong with it, in words."""
    words, make = random.choice(KINDS)
    compression = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))
    with zipfile.ZipFile(archive, "w", compression) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(folder).as_posix())
    more = make(archive, random)
    return f"{words}{f' ({more})' if more else ''}"


def _harmed(archive: Path, random: Random) -> str:
    data, words = harmed(random, archive.read_bytes())
    archive.write_bytes(data)
    return words


def _harmed_directory(archive: Path, random: Random) -> str:
    """Damage where the directory is, at the end."""
    data = archive.read_bytes()
    start = data.find(CENTRAL)
    tail, words = harmed(random, data[start:])
    archive.write_bytes(data[:start] + tail)
    return words


def _lying_directory(archive: Path, random: Random) -> str:
    """Another size, CRC, method, flag or offset in an entry of the directory."""
    data = bytearray(archive.read_bytes())
    entries = [i for i in range(len(data) - 4) if data[i : i + 4] == CENTRAL]
    at = random.choice(entries)
    field, offset, size = random.choice(
        (("flags", 8, 2), ("method", 10, 2), ("CRC", 16, 4), ("packed size", 20, 4), ("size", 24, 4), ("offset", 42, 4))
    )
    value = random.choice((0, 1, 8, 9, 12, 14, 99, 2**16 - 1, 2**31, 2**32 - 1)) % 256**size
    data[at + offset : at + offset + size] = value.to_bytes(size, "little")
    archive.write_bytes(data)
    return f"{field} = {value}"


def _lying_manifest(archive: Path, random: Random) -> str:
    """The manifest promises a file of another size."""
    import json

    with zipfile.ZipFile(archive) as packed:
        contents = {name: packed.read(name) for name in packed.namelist()}
    manifest = json.loads(contents["manifest.json"])
    name = random.choice(sorted(manifest["files"]))
    manifest["files"][name]["size"] = random.choice((0, 1, 2**31, 2**36, 2**62, 10**30))
    contents["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for key, data in contents.items():
            packed.writestr(key, data)
    return f"{name}: {manifest['files'][name]['size']}"


def _added(make: Callable[[zipfile.ZipFile, Random], None]) -> Callable[[Path, Random], str]:
    def add(archive: Path, random: Random) -> str:
        import warnings

        with warnings.catch_warnings(), zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as packed:
            warnings.simplefilter("ignore")
            make(packed, random)
        return ""

    return add


def _traversal(packed: zipfile.ZipFile, random: Random) -> None:
    names = (
        "../evil",
        "/tmp/evil",
        "a/../../evil",
        "..\\evil",
        "C:\\evil",
        "\0",
        "x" * 60_000,
        "con",
        "./manifest.json",
    )
    packed.writestr(random.choice(names), b"x")


def _link(packed: zipfile.ZipFile, random: Random) -> None:
    info = zipfile.ZipInfo(random.choice(("unet/more", "unet/model.onnx", "tokenizer/vocab.txt")))
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed.writestr(info, "/etc/passwd")


def _bomb(packed: zipfile.ZipFile, _random: Random) -> None:
    packed.writestr("unet/zeros", bytes(300_000_000))


def _twice(packed: zipfile.ZipFile, random: Random) -> None:
    packed.writestr(random.choice(("manifest.json", "unet/model.onnx")), b"{}")


def _many(packed: zipfile.ZipFile, _random: Random) -> None:
    for i in range(12_000):
        packed.writestr(f"more/{i}", b"")


def _second_manifest(packed: zipfile.ZipFile, _random: Random) -> None:
    packed.writestr("inner/manifest.json", b"{}")


def _prefix(archive: Path, random: Random) -> str:
    archive.write_bytes(random.randbytes(random.choice((1, 1000))) + archive.read_bytes())
    return ""


def _two_directories(archive: Path, _random: Random) -> str:
    data = archive.read_bytes()
    archive.write_bytes(data + data)
    return ""


def _many_entries_promised(archive: Path, random: Random) -> str:
    data = bytearray(archive.read_bytes())
    at = data.rfind(END)
    fields = list(struct.unpack("<4s4H2LH", data[at : at + 22]))
    fields[random.choice((1, 2, 3, 4, 5, 6))] = 65_535
    data[at : at + 22] = struct.pack("<4s4H2LH", *fields)
    archive.write_bytes(data)
    return ""


KINDS: list[tuple[str, Callable[[Path, Random], str]]] = [
    ("damaged", _harmed),
    ("damaged", _harmed),
    ("a damaged directory", _harmed_directory),
    ("a damaged directory", _harmed_directory),
    ("a lying directory", _lying_directory),
    ("a lying directory", _lying_directory),
    ("a lying end", _many_entries_promised),
    ("a lying manifest", _lying_manifest),
    ("a name that leads out", _added(_traversal)),
    ("a link", _added(_link)),
    ("300 MB of zeros", _added(_bomb)),
    ("a file twice", _added(_twice)),
    ("12,000 files", _added(_many)),
    ("two manifests", _added(_second_manifest)),
    ("noise before it", _prefix),
    ("itself twice", _two_directories),
]
