"""Caption files that are damaged, of another kind than they say, or endless; and patterns that take for ever."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from ..attempts import Failed, Family, Place
from ..mutate import harmed

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".txt.gz", ".csv.gz", ".jsonl.gz", ".parquet")
WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "shirt",
    "shoe",
    "bag",
    "coat",
    "dress",
    "on",
    "the",
    "table",
    "café",
    "鳥",
    "two",
    "with",
    "😀",
    "and",
]
SLOW_PATTERNS = ("(a+)+$", "(a|a)*b", "(.*)*x", "(\\w+\\s?)*!", "a{1,5000}{1,5000}", "(?:" * 500 + ")" * 500)
ODD_PATTERNS = (
    "[",
    "(?P<x>",
    "\\",
    "*",
    "(?i)red",
    "\\1",
    "",
    "x" * 100_000,
    "(?<=a+)b",
    "\udc80",
    "\0",
    "[[:alpha:]]",
)


def run(place: Place, random: Random) -> None:
    captions = [" ".join(random.choices(WORDS, k=random.randint(1, 12))) for _ in range(random.choice((1, 30, 400)))]
    file = Path(f"captions{random.choice(KINDS)}")
    file.write_bytes(encoded(captions, file.name))
    exclude: tuple[str, ...] = ()
    kind = random.random()
    if kind < 0.45:
        data, words = harmed(random, file.read_bytes())
        file.write_bytes(data)
    elif kind < 0.85:
        words, change = random.choice(CHANGES)
        change(file, random)
    else:
        exclude = (random.choice(SLOW_PATTERNS + ODD_PATTERNS),)
        file.write_bytes(encoded([*captions, "a" * 5000, "a " * 2000], file.name))
        words = f"--exclude {ascii(exclude[0])[:60]}"
    place.describe(f"{file.name}: {words}")
    # a checksum is over the contents, and a gzip header has a time and a name that no checksum covers
    must_be_whole = file.name.endswith(".gz") and kind < 0.45
    _build(file, exclude, list(dict.fromkeys(captions)) if must_be_whole else None)


def _build(file: Path, exclude: tuple[str, ...], expected: list[str] | None) -> None:
    """Build a pool and read all of it. expected: the prompts that it must have, if it is not refused."""
    from rcdeploy.prompts.filters import PoolOptions
    from rcdeploy.prompts.pool_builder import build_pool

    facts = os.lstat(file) if os.path.lexists(file) else None
    pool = build_pool([file], Path("pool"), PoolOptions(exclude=exclude))
    prompts = list(pool)
    (counts,) = pool.facts.sources
    dropped = sum(getattr(counts, key) for key in ("empty", "length", "script", "filtered", "duplicate", "not_drawn"))
    if len(prompts) != len(pool) or counts.rows != counts.kept + dropped or counts.kept != len(pool):
        raise Failed(f"{len(prompts)} prompts, but the pool counts {pool.facts.sources}")
    for prompt in prompts:
        if prompt != " ".join(prompt.split()) or not prompt:
            raise Failed(f"the prompt {prompt!r} is not normalised")
    if expected is not None and prompts != expected:
        raise Failed(f"a damaged archive gave {len(prompts)} prompts in silence, of {len(expected)}")
    if facts and (os.lstat(file).st_mtime_ns, os.lstat(file).st_size) != (facts.st_mtime_ns, facts.st_size):
        raise Failed("the caption file was changed")


def encoded(captions: list[str], name: str) -> bytes:
    """Captions as a file of this name holds them."""
    if name.endswith(".parquet"):
        return _parquet(captions)
    plain = name.removesuffix(".gz")
    text = io.StringIO(newline="")
    if plain.endswith(".jsonl"):
        text.writelines(json.dumps({"caption": caption}) + "\n" for caption in captions)
    elif plain.endswith(".txt"):
        text.writelines(f"{caption}\n" for caption in captions)
    else:
        writer = csv.writer(text, delimiter="\t" if plain.endswith(".tsv") else ",")
        writer.writerow(["id", "caption"])
        writer.writerows(enumerate(captions))
    data = text.getvalue().encode()
    return gzip.compress(data, mtime=0) if name.endswith(".gz") else data


def _parquet(captions: list[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"caption": captions}), sink)
    return sink.getvalue()


def _special(file: Path, kind: str) -> None:
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"zero": "/dev/zero", "circle": file.name, "memory": "/proc/self/mem"}[kind])


def _content(make: Callable[[bytes], bytes]) -> Callable[[Path, Random], None]:
    """Changes the text, inside the compression where there is one."""

    def change(file: Path, _random: Random) -> None:
        data = file.read_bytes()
        is_packed = file.name.endswith(".gz")
        data = make(gzip.decompress(data) if is_packed else data)
        file.write_bytes(gzip.compress(data, compresslevel=1) if is_packed else data)

    return change


def _wrong_kind(file: Path, random: Random) -> None:
    file.write_bytes(encoded(["a red bag"] * 5, f"x{random.choice(KINDS)}"))


CHANGES: list[tuple[str, Callable[[Path, Random], None]]] = [
    *((f"is a {kind}", lambda file, _, kind=kind: _special(file, kind)) for kind in ("fifo", "folder", "zero")),
    *((f"is a link to {kind}", lambda file, _, kind=kind: _special(file, kind)) for kind in ("circle", "memory")),
    ("is of another kind than its name says", _wrong_kind),
    ("is of another kind than its name says", _wrong_kind),
    ("a line of 40 MB", _content(lambda data: data + b"x" * 40_000_000)),
    ("300 MB of zeros", _content(lambda data: data + bytes(300_000_000))),
    ("a million empty lines", _content(lambda data: data + b"\n" * 1_000_000)),
    ("binary", _content(lambda data: Random(len(data)).randbytes(100_000))),
    ("in UTF-16", _content(lambda data: data.decode("utf-8", "replace").encode("utf-16"))),
    ("in Latin-1", _content(lambda data: data.decode("utf-8", "replace").encode("latin-1", "replace") + b"caf\xe9\n")),
    ("with a byte order mark", _content(lambda data: b"\xef\xbb\xbf" + data)),
    ("with carriage returns", _content(lambda data: data.replace(b"\n", b"\r\n"))),
    ("with old Mac lines", _content(lambda data: data.replace(b"\n", b"\r"))),
    ("with zero bytes", _content(lambda data: data.replace(b"a", b"\0"))),
    ("with an open quote", _content(lambda data: data.replace(b",", b',"', 1) + b"x" * 200_000)),
    ("100,000 columns", _content(lambda data: b"," * 100_000 + b"\n" + data)),
    ("JSON nested 100,000 deep", _content(lambda data: data + b"[" * 100_000 + b"\n")),
    ("a number of 5,000 digits", _content(lambda data: data + b'{"caption": ' + b"9" * 5000 + b"}\n")),
    ("a lone surrogate", _content(lambda data: data + b'{"caption": "\\udc80"}\n')),
    ("captions that are lists", _content(lambda data: data + b'{"caption": ["a"]}\n')),
    ("rows that are no objects", _content(lambda data: data + b"5\nnull\n[]\n")),
    ("empty", _content(lambda data: b"")),
    ("lines of other line ends", _content(lambda data: data + "a\u2028b\x85c\x0cd\x1ce\n".encode())),
]

FAMILY = Family("Prompt files", run, share=150, seconds=60)
