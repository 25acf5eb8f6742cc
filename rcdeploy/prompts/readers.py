"""Reads captions from files: .txt, .csv, .tsv, .jsonl, each also .gz, and .parquet; never a file at once.

Readers yield lists of captions as they stand in the file (not yet normalised); a missing value is "". A caption is

- in .txt: a line (named columns do not matter there);
- in .csv and .tsv: the field under the column's name; the first row is the header, a blank line is no row;
- in .jsonl: the value of the column's key; null, or no such key after the first line, is "";
- in .parquet: the value of the column, which must hold text.

The column is `column`, by default the first of COLUMNS that the file has.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

COLUMNS = ("text", "TEXT", "caption", "prompt")
"""Columns that may hold captions, in order of preference, where none is named."""
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
            yield from _parquet(path, column)
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
    """How many rows the files hold, when that stands in them (all are parquet); else None, as counting is reading."""
    if any(_kind(path) != ".parquet" for path in files):
        return None
    rows = 0
    for path in files:
        with _open_parquet(path) as file, _parquet_errors(path):
            rows += file.metadata.num_rows
    return rows


def _kind(path: Path) -> str | None:
    """ ".txt", ".csv", ".tsv", ".jsonl" or ".parquet", whatever the case and with or without .gz; None when unknown."""
    name = path.name.lower()
    ending = next((e for e in ALLOWED if name.endswith(e)), None)
    return ending.removesuffix(".gz") if ending else None


def _names_in(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _find_column(path: Path, names: list[str], requested: str | None) -> str:
    """Raises RcdeployError that lists the columns of the file, and the nearest name, when none fits."""
    candidates = (requested,) if requested is not None else COLUMNS
    for name in candidates:
        if name in names:
            return name
    near = [n for c in candidates for n in difflib.get_close_matches(c.lower(), [n.lower() for n in names], n=1)]
    nearest = next((n for n in names if near and n.lower() == near[0]), None)
    listed = ", ".join(repr(n if len(n) <= 60 else n[:57] + "...") for n in names[:40]) or "none"
    what = f"no column {requested!r}" if requested is not None else f"none of the columns {', '.join(COLUMNS)}"
    hint = (
        f"Did you mean --column {nearest}?" if nearest is not None else "Name the one with the captions: --column NAME."
    )
    raise RcdeployError(
        f"{path} has {what}; its columns are: {listed}",
        fix=f"{hint} (A file with one caption a line and no header should end in .txt.)",
    )


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
        at = header.index(_find_column(path, header, column))
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
                key = _find_column(path, list(row), column)
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


@contextmanager
def _parquet_errors(path: Path, where: str = "") -> Iterator[None]:
    """Turns whatever pyarrow raises for a damaged file (from OSError to KeyError) into an RcdeployError."""
    try:
        yield
    except (RcdeployError, GeneratorExit):
        raise
    except UnicodeDecodeError as error:
        raise RcdeployError(f"{path}{where}: not UTF-8 ({error.reason})") from error
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise RcdeployError(f"{path}{where}: not a whole parquet file ({text})", fix="Fetch it again.") from error


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise RcdeployError(
            f"{path}: reading parquet needs pyarrow, which is not installed", fix="pip install 'rcdeploy[parquet]'"
        ) from None
    with _parquet_errors(path):
        return pq.ParquetFile(path, buffer_size=1 << 20)  # buffered: pages are streamed, not whole row groups


def _parquet(path: Path, column: str | None) -> Iterator[list[str]]:
    file = _open_parquet(path)
    import pyarrow as pa

    try:
        with _parquet_errors(path):
            name = _find_column(path, file.schema_arrow.names, column)
            kind = file.schema_arrow.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
                raise RcdeployError(
                    f"{path}: column {name!r} holds {kind}, not text", fix="Name another: --column NAME."
                )
            rows = file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[name], use_threads=False)
        row = 0
        while True:
            with _parquet_errors(path, f", after row {row}"):
                batch = next(rows, None)
                captions = [] if batch is None else [caption or "" for caption in batch.column(0).to_pylist()]
            if batch is None:
                return
            if captions:
                yield captions
            row += len(captions)
    finally:
        file.close()
