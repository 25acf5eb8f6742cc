"""Captions of parquet files, through pyarrow, which is installed with the extra "parquet"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from .columns import find_column


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


def count_parquet_rows(path: Path) -> int:
    with _open_parquet(path) as file, _parquet_errors(path):
        return int(file.metadata.num_rows)


def read_parquet(path: Path, column: str | None, rows_per_batch: int) -> Iterator[list[str]]:
    """Yields lists of captions of the column. Raises RcdeployError for a damaged file and for a column of no text."""
    file = _open_parquet(path)
    import pyarrow as pa

    try:
        with _parquet_errors(path):
            name = find_column(path, file.schema_arrow.names, column)
            kind = file.schema_arrow.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
                raise RcdeployError(
                    f"{path}: column {name!r} holds {kind}, not text", fix="Name another: --column NAME."
                )
            rows = file.iter_batches(batch_size=rows_per_batch, columns=[name], use_threads=False)
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
