"""Mutations of values, JSON documents and bytes; each says in words what it changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "../../outside",
    "/dev/zero",
    "/etc/passwd",
    "a\nb",
    "\u202egnp.exe",
    "e\u0301" * 500,
    "\U0001f600" * 50,
    "\udc80",
    "[red]x[/red]",
    "%s%n{}{0}",
    "x" * 300,
    "x" * 1_000_000,
    "-1",
    "1e999",
    "nan",
    "true",
    "con",
    "~",
)
ODD_NUMBERS: tuple[float | int, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 65_536, 10**6, 10**9, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63)),
    *(10**30, 0.5, -0.5, 1e-30, 5e-324, 1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), -0.0),
)
Keys = tuple[str | int, ...]


def shortened(value: Any, length: int = 60) -> str:
    text = ascii(value)
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def odd_value(random: Random, old: Any = None) -> Any:
    """A value that does not belong in place of `old`: of another type, out of bounds, or huge."""
    choices: list[Callable[[], Any]] = [
        lambda: random.choice(ODD_TEXTS),
        lambda: random.choice(ODD_NUMBERS),
        lambda: random.choice(ODD_NUMBERS),
        lambda: random.choice((None, True, False, [], {}, [[]], {"": None}, [None] * 1000)),
        lambda: [old],
        lambda: {"a": old},
        lambda: str(old),
        lambda: [old] * random.choice((2, 10_000)),
        lambda: nested(random.choice((50, 300))),
    ]
    if isinstance(old, bool):
        choices.append(lambda: not old)
    elif isinstance(old, int | float):
        choices += [lambda: -old, lambda: old * 1000, lambda: old + random.choice((-1, 1)), lambda: old / 3] * 2
    elif isinstance(old, str):
        choices += [lambda: old * 50, lambda: old[:-1], lambda: old.upper(), lambda: old + "\0"] * 2
    elif isinstance(old, list) and old:
        choices += [lambda: old[:-1], lambda: old + old[:1], lambda: old[::-1]] * 2
    return random.choice(choices)()


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def places(data: Any, limit: int = 4000) -> list[Keys]:
    """The paths of all values in a JSON document, without those of the document itself."""

    def walk(value: Any, above: Keys) -> Iterator[Keys]:
        if above:
            yield above
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield from walk(inner, (*above, key))

    found: list[Keys] = []
    for path in walk(data, ()):
        found.append(path)
        if len(found) >= limit:
            break
    return found


def mutated_json(random: Random, data: Any, below: Keys = ()) -> tuple[Any, str]:
    """A copy with one to three values replaced, removed, or added. below: change only what is under this path."""
    data = copy.deepcopy(data)
    words = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        paths = [p for p in places(data) if p[: len(below)] == below and p != below] or places(data)
        # deep parts, such as a vocabulary, have most of the values: every depth gets its turn
        depth = random.choice(sorted({len(p) for p in paths}))
        path = random.choice([p for p in paths if len(p) == depth])
        target = data
        for key in path[:-1]:
            target = target[key]
        name = ".".join(shortened(k, 30).strip("'") for k in path)
        kind = random.random()
        if kind < 0.15:
            del target[path[-1]]
            words.append(f"{name} removed")
        elif kind < 0.22 and isinstance(target, dict):
            value = odd_value(random, target[path[-1]])
            target[random.choice(("unknown", "__class__", "", "\0"))] = value
            words.append(f"a key beside {name}: {shortened(value)}")
        else:
            target[path[-1]] = odd_value(random, target[path[-1]])
            words.append(f"{name} = {shortened(target[path[-1]])}")
    return data, ", ".join(words)


def json_text(data: Any) -> bytes:
    """JSON with NaN and lone surrogates where the data has them."""
    return json.dumps(data).encode()


def broken_json(random: Random, text: bytes) -> tuple[bytes, str]:
    """Text that is no JSON, or JSON that few programs can read."""
    choices: list[tuple[str, Callable[[], bytes]]] = [
        ("nested 100,000 deep", lambda: b"[" * 100_000),
        ("objects nested 50,000 deep", lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        ("a number of 5,000 digits", lambda: text.rstrip()[:-1] + b',"n":' + b"9" * 5_000 + b"}"),
        ("cut short", lambda: text[: random.randrange(len(text))]),
        ("empty", lambda: b""),
        ("in UTF-16", lambda: text.decode().encode("utf-16")),
        ("with a byte order mark", lambda: b"\xef\xbb\xbf" + text),
        ("not UTF-8", lambda: text.replace(b'"', b'"\xff', 1)),
        ("a list", lambda: b"[" + text + b"]"),
        ("twice", lambda: text + text),
        ("null", lambda: b"null"),
        ("zeros", lambda: bytes(len(text))),
        ("every key twice", lambda: text.rstrip()[:-1] + b"," + text.lstrip()[1:]),
        ("2 MB of blanks before it", lambda: b" " * 2_000_000 + text),
    ]
    words, make = random.choice(choices)
    return make(), words


def harmed(random: Random, data: bytes) -> tuple[bytes, str]:
    """Bytes after a fault of a disk or a copy; always others than `data`."""
    while True:
        changed, words = _harmed(random, data)
        if changed != data:
            return changed, words


def _harmed(random: Random, data: bytes) -> tuple[bytes, str]:
    size = len(data)
    at = random.randrange(size) if size else 0
    kind = random.choice(("bits", "bits", "bits", "cut", "zeros", "noise", "empty", "longer", "swapped"))
    changed = bytearray(data)
    if kind == "bits" and size:
        spots = [random.randrange(size) for _ in range(random.choice((1, 1, 2, 8)))]
        for spot in spots:
            changed[spot] ^= 1 << random.randrange(8)
        return bytes(changed), f"{len(spots)} bits flipped, the first at byte {spots[0]:,}"
    if kind == "cut" and size:
        return data[:at], f"cut to {at:,} of {size:,} bytes"
    length = min(random.choice((1, 16, 512, 4096)), max(1, size - at))
    if kind == "zeros" and size:
        changed[at : at + length] = bytes(length)
        return bytes(changed), f"{length} zeros from byte {at:,}"
    if kind == "noise" and size:
        changed[at : at + length] = random.randbytes(length)
        return bytes(changed), f"{length} random bytes from byte {at:,}"
    if kind == "swapped" and size > 1:
        return data[size // 2 :] + data[: size // 2], "its halves swapped"
    if kind == "empty" and size:
        return b"", "emptied"
    return data + random.randbytes(length), f"{length} bytes longer"


def replace_by_special(random: Random, file: Path, secret: Path) -> str:
    """Put a link, a named pipe, a device or a folder in the file's place; returns what, in words."""
    import os

    kind = random.choice(("fifo", "folder", "absent", "zero", "circle", "secret", "dangling", "unreadable"))
    if kind == "unreadable":
        if os.geteuid() == 0:  # to whom no file is unreadable
            kind = "absent"
        else:
            file.chmod(0)
            return f"{file.name} may not be read"
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "absent":
        targets = {"zero": "/dev/zero", "circle": file, "secret": secret, "dangling": "nowhere"}
        file.symlink_to(targets[kind])
    return f"{file.name} is {'a link: ' if kind in ('zero', 'circle', 'secret', 'dangling') else ''}{kind}"
