"""Reads captions from files: .txt, .csv, .tsv, .jsonl, each also .gz, and .parquet; never a file at once.

Readers yield lists of captions as they stand in the file (not yet normalised); a missing value is "". A caption is

- in .txt: a line (named columns do not matter there);
- in .csv and .tsv: the field under the column's name; the first row is the header, a blank line is no row;
- in .jsonl: the value of the column's key; null, or no such key after the first line, is "";
- in .parquet: the value of the column, which must hold text.

The column is `column`, by default the first of columns.COLUMNS that the file has.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from .columns import find_column
from .parquet import count_parquet_rows, read_parquet

ALLOWED = (".txt", ".csv", ".tsv", ".jsonl", ".txt.gz", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")
BYTES_PER_CHUNK = 1 << 22
MAX_LINE_BYTES = 1 << 24
"""a longer line is no caption: most likely the file is not text; the bound keeps memory flat"""
ROWS_PER_BATCH = 1 << 16


def check_regular_file(file: Path, *, folders: bool = False) -> None:
    """Raises RcdeployError for what exists and is no file: reading a named pipe or a device may never end.

    folders: whether a folder will do.
    """
    try:
        if not file.exists() or file.is_file() or (folders and file.is_dir()):
            return
        kind = "a folder" if file.is_dir() else "a named pipe, a socket or a device"
        raise RcdeployError(f"{file} is {kind}, not a file", fix="Write the text to a regular file first.")
    except OSError as error:
        raise RcdeployError(f"cannot read {str(file)[:200]}: {error.strerror or error}") from None


def files_of(source: Path) -> list[Path]:
    """The caption files of one source: itself, or for a folder all files of a known kind in it and below, sorted.

    Names that start with a dot are left out of a folder. Raises RcdeployError when nothing is there, when a folder
    has no such file, and when a file named by itself is of an unknown kind or cannot be read.
    """
    check_regular_file(source, folders=True)
    if source.is_dir():
        below = (p for p in source.rglob("*") if not any(part.startswith(".") for part in p.relative_to(source).parts))
        files = sorted(p for p in below if p.is_file() and _kind(p))
        if not files:
            raise RcdeployError(
                f"{source} holds no captions", fix=f"It should hold files that end in {_one_of(ALLOWED)}."
            )
        return files
    if not source.exists():
        near = difflib.get_close_matches(source.name, _names_in(source.parent), n=1)
        raise RcdeployError(
            f"{source} does not exist", fix=f"Did you mean {source.with_name(near[0])}?" if near else None
        )
    if not _kind(source):
        raise RcdeployError(
            f"captions cannot be read from {source}: the kind of file is unknown",
            fix=f"Allowed are files that end in {_one_of(ALLOWED)}, and folders of them.",
        )
    return [source]


def batches(files: list[Path], column: str | None = None) -> Iterator[list[str]]:
    """Rows of the files in order, about ROWS_PER_BATCH at a time: many small files cost no more than a big one."""
    pending: list[str] = []
    for file in files:
        for rows in read_batches(file, column):
            pending += rows
            if len(pending) >= ROWS_PER_BATCH:
                yield pending
                pending = []
    if pending:
        yield pending


def read_batches(path: Path, column: str | None = None) -> Iterator[list[str]]:
    """Yields lists of captions (any length from 1, tens of thousands at most) in the file's order.

    Raises RcdeployError, with file and line (parquet: row), for bad UTF-8, bad JSON, a broken or truncated gzip, a
    missing column, a value that is not text; also when the file cannot be read, or is parquet and pyarrow is missing.
    """
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from read_parquet(path, column, ROWS_PER_BATCH)
        elif kind == ".jsonl":
            yield from _jsonl(path, column)
        elif kind in (".csv", ".tsv"):
            yield from _csv(path, column, "," if kind == ".csv" else "\t")
        else:
            for _, text in _whole_lines(path):
                yield text.removesuffix("\n").split("\n")
    except OSError as error:
        raise RcdeployError(f"cannot read {path}: {error.strerror or error}") from error


def count_rows(files: list[Path]) -> int | None:
    """Number of rows in the files, if they record it (all are parquet); else None, as counting is reading."""
    if any(_kind(path) != ".parquet" for path in files):
        return None
    return sum(map(count_parquet_rows, files))


def _kind(path: Path) -> str | None:
    """ ".txt", ".csv", ".tsv", ".jsonl" or ".parquet", whatever the case and with or without .gz; None when unknown."""
    name = path.name.lower()
    ending = next((e for e in ALLOWED if name.endswith(e)), None)
    return ending.removesuffix(".gz") if ending else None


def _names_in(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number of the first line, from 1; some whole lines, each with its line feed but perhaps the last)."""
    line, rest = 1, b""
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as f:
            # read1 returns what it has: before a truncated end every line is still read and counted
            while chunk := f.read1(BYTES_PER_CHUNK):
                cut = chunk.rfind(b"\n") + 1
                if cut:
                    block, rest = rest + chunk[:cut], chunk[cut:]
                    yield line, _decode(path, block, line)
                    line += block.count(b"\n")
                else:
                    rest += chunk
                if len(rest) > MAX_LINE_BYTES:
                    raise RcdeployError(
                        f"{path}, line {line}: longer than {MAX_LINE_BYTES:,} bytes; is it a text file?"
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RcdeployError(
            f"{path}, line {line}: the gzip file is truncated or broken ({error})", fix="Fetch or compress it again."
        ) from error
    if rest:
        yield line, _decode(path, rest, line)


def _decode(path: Path, block: bytes, line: int) -> str:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = line + block.count(b"\n", 0, error.start)
        raise RcdeployError(
            f"{path}, line {wrong}: not UTF-8 ({error.reason}, byte 0x{block[error.start]:02x})",
            fix="Convert it first, for example: iconv -f LATIN1 -t UTF-8 old > new",
        ) from None
    return text.removeprefix("\ufeff") if line == 1 else text  # some editors begin a file with a byte order mark


def _csv(path: Path, column: str | None, delimiter: str) -> Iterator[list[str]]:
    lines = (line for _, text in _whole_lines(path) for line in io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            return  # an empty file has no rows
        at = header.index(find_column(path, header, column))
        while rows := list(islice(reader, ROWS_PER_BATCH)):
            captions = [row[at] if at < len(row) else "" for row in rows if row]
            if captions:
                yield captions
    except csv.Error as error:
        raise RcdeployError(
            f"{path}, line {reader.line_num}: {error}", fix="Look for a quotation mark that is opened and never closed."
        ) from error


def _jsonl(path: Path, column: str | None) -> Iterator[list[str]]:
    decode, key = json.JSONDecoder().decode, None
    for first, text in _whole_lines(path):
        captions: list[str] = []
        for number, line in enumerate(text.split("\n"), first):
            stripped = line.strip()
            if not stripped:
                continue
            try:
                row = decode(stripped)
            except (ValueError, RecursionError) as error:
                raise RcdeployError(f"{path}, line {number}: not JSON: {error}") from None
            if type(row) is not dict:
                raise RcdeployError(f'{path}, line {number}: a JSON object was expected, such as {{"text": "a cat"}}')
            if key is None:
                key = find_column(path, list(row), column)
            caption = row.get(key)
            if type(caption) is not str:
                if caption is not None:
                    raise RcdeployError(f"{path}, line {number}: {key!r} is not text but {type(caption).__name__}")
                caption = ""
            elif "\\u" in line:
                _check_no_half_characters(caption, path, number)
            captions.append(caption)
        if captions:
            yield captions


def _check_no_half_characters(caption: str, path: Path, line: int) -> None:
    """JSON can spell half of a surrogate pair (\\ud83d alone), which is no character and cannot be stored as UTF-8."""
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise RcdeployError(f"{path}, line {line}: half of a surrogate pair, which is no valid text") from None
