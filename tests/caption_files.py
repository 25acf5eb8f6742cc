"""Caption files of every kind, and pools of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rcdeploy.prompts.filters import PoolOptions
from rcdeploy.prompts.pool import PromptPool, SourceCounts
from rcdeploy.prompts.pool_builder import build_pool

CAPTIONS = ["a cat", "ein Bär im Wald", "猫が眠っている", "a rocket 🚀 at dawn", 'he said "hi", twice']


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_captions(path: Path, captions: list[str | None], column: str = "text") -> Path:
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"id": list(range(len(captions))), column: captions}), path, row_group_size=2)
        return path
    if kind == "txt":
        return write(path, "".join(f"{c or ''}\n" for c in captions))
    if kind == "jsonl":
        return write(path, "".join(json.dumps({"id": i, column: c}) + "\n" for i, c in enumerate(captions)))
    mark = "," if kind == "csv" else "\t"
    rows = [f'{i}{mark}"{(c or "").replace(chr(34), chr(34) * 2)}"' for i, c in enumerate(captions)]
    return write(path, "\n".join([f"id{mark}{column}", *rows, ""]))


def build(tmp_path: Path, *sources: Path, **options: Any) -> PromptPool:
    return build_pool(list(sources), tmp_path / "pool", PoolOptions(**options))


def source_of(pool: PromptPool, index: int = 0) -> SourceCounts:
    return pool.facts.sources[index]
