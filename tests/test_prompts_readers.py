"""Caption files: every kind, columns, and what is refused with file and line."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from caption_files import CAPTIONS, build, source_of, write, write_captions

from rcdeploy.prompts import columns, patterns, readers
from rcdeploy.prompts.journal import Journal
from rcdeploy.prompts.keywords import Keywords
from rcdeploy.prompts.nouns import read_nouns
from rcdeploy.prompts.patterns import WholeWordPatterns
from rcdeploy.prompts.pool import SourceCounts
from rcdeploy.prompts.readers import files_of
from rcdeploy_runtime.errors import RcdeployError

KINDS = ["txt", "csv", "tsv", "jsonl", "txt.gz", "csv.gz", "tsv.gz", "jsonl.gz", "parquet", "TXT"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"captions.{kind.lower()}"
    write_captions(path, [*CAPTIONS, "", None])
    if kind == "TXT":
        path = path.rename(tmp_path / "captions.TXT")
    with build(tmp_path, path) as pool:
        assert list(pool) == CAPTIONS
        assert [pool[i] for i in range(len(pool))] == CAPTIONS
        assert source_of(pool) == SourceCounts(str(path), files=1, rows=7, kept=5, empty=2)
        assert pool.facts.bytes == sum(len(c.encode()) for c in CAPTIONS)
        assert pool.manifest.wrong_files(pool.folder) == []


@pytest.mark.parametrize("column", columns.COLUMNS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_default_columns(tmp_path: Path, kind: str, column: str) -> None:
    path = write_captions(tmp_path / f"c.{kind}", ["one"], column)
    assert list(build(tmp_path, path)) == ["one"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_missing_columns(tmp_path: Path, kind: str) -> None:
    path = write_captions(tmp_path / f"c.{kind}", ["one"], "Captions")
    assert list(build(tmp_path, path, column="Captions")) == ["one"]
    with pytest.raises(RcdeployError, match=r"none of the columns text, .*'id', 'Captions'[\s\S]*--column Captions"):
        build(tmp_path, path)
    with pytest.raises(RcdeployError, match=r"no column 'captoins'.*'id', 'Captions'[\s\S]*mean --column Captions"):
        build(tmp_path, path, column="captoins")


def test_order_of_columns_and_lines_that_lack_one(tmp_path: Path) -> None:
    lines = [{"prompt": "p", "caption": "c"}, {"prompt": "q"}, {"caption": None}, {"caption": "d"}]
    path = write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines)))  # no line feed at the end
    with build(tmp_path, path) as pool:
        assert list(pool) == ["c", "d"] and source_of(pool).empty == 2
    assert list(build(tmp_path, path, column="prompt")) == ["p", "q"]


def test_csv_corners(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", '\ufefftext,id\r\n"two\r\nlines, one caption",1\r\n\r\nplain,2\r\n')
    assert list(build(tmp_path, path)) == ["two lines, one caption", "plain"]
    short = write(tmp_path / "short.csv", "id,text\n1\n2,here\n")
    with build(tmp_path, short) as pool:
        assert list(pool) == ["here"] and source_of(pool).empty == 1


def test_parquet_dictionary_and_wrong_type(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "d.parquet")
    assert list(build(tmp_path, tmp_path / "d.parquet", deduplicate=False)) == ["a", "b", "a"]
    pq.write_table(pa.table({"text": [[1], [2]]}), tmp_path / "n.parquet")
    with pytest.raises(RcdeployError, match=r"'text' holds list.*, not text"):
        build(tmp_path, tmp_path / "n.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(RcdeployError, match=r"bad\.parquet"):
        build(tmp_path, tmp_path / "bad.parquet")


def test_folders_are_read_sorted_and_below(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    write(folder / "b.txt", "two\n")
    write(folder / "a.jsonl", '{"text": "one"}\n')
    write(folder / "c" / "d.csv", "caption\nthree\n")
    write(folder / ".cache" / "x.txt", "hidden\n")
    write(folder / "picture.png", "no caption\n")
    with build(tmp_path, folder, write(tmp_path / "e.txt", "four\n")) as pool:
        assert list(pool) == ["one", "two", "three", "four"]
        assert [(s.name, s.files, s.kept) for s in pool.facts.sources] == [
            (str(folder), 3, 3), (str(tmp_path / "e.txt"), 1, 1),
        ]  # fmt: skip


WRONG: dict[str, tuple[str, bytes, str]] = {
    "latin1": ("c.txt", "fine\nB\xe4r\n".encode("latin1"), r"c\.txt, line 2: not UTF-8"),
    "utf16": ("c.csv", "text\n".encode("utf-16"), r"c\.csv, line 1: not UTF-8"),
    "json": ("c.jsonl", b'{"text": "a"}\n\n{"text": \n', r"c\.jsonl, line 3: not JSON"),
    "json list": ("c.jsonl", b"[1]\n", r"line 1: a JSON object was expected"),
    "json value": ("c.jsonl", b'{"text": "a"}\n{"text": 3}\n', r"line 2: 'text' is not text but int"),
    "json half": ("c.jsonl", b'{"text": "\\ud83d"}\n', r"line 1: half of a surrogate pair"),
    "csv quote": ("c.csv", b'text\n"never closed ' + b"x" * 200_000, r"c\.csv, line 2: field larger"),
    "gzip": ("c.txt.gz", b"no gzip", r"c\.txt\.gz, line 1: the gzip file is truncated or broken"),
    "line": ("c.txt", b"x" * (readers.MAX_LINE_BYTES + 1), r"line 1: longer than"),
    "kind": ("c.docx", b"x", r"c\.docx: the kind of file is unknown[\s\S]*\.txt, .*\.parquet"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_named_with_the_line(tmp_path: Path, name: str) -> None:
    file, data, message = WRONG[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(RcdeployError, match=message):
        build(tmp_path, tmp_path / file)
    assert [p.name for p in tmp_path.iterdir()] == [file]  # nothing half-made is left


def test_truncated_gzip_names_the_line(tmp_path: Path) -> None:
    lines = "".join(f"caption {i * 7919 % 100_003} of many\n" for i in range(50_000))
    data = gzip.compress(lines.encode())
    (tmp_path / "c.txt.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(RcdeployError, match=r"line \d{5}: the gzip file is truncated"):
        build(tmp_path, tmp_path / "c.txt.gz")


def test_missing_sources(tmp_path: Path) -> None:
    write(tmp_path / "captions.txt", "a\n")
    with pytest.raises(RcdeployError, match=r"caption\.txt does not exist[\s\S]*captions\.txt\?"):
        build(tmp_path, tmp_path / "caption.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RcdeployError, match="empty holds no captions"):
        build(tmp_path, tmp_path / "empty")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RcdeployError, match=r"pip install 'rcdeploy\[parquet\]'"):
        build(tmp_path, tmp_path / "c.parquet")


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt"):
        file = tmp_path / name
        for read in (files_of, Keywords.read, read_nouns, Journal):
            with pytest.raises(RcdeployError, match=f"{name} is a named pipe, a socket or a device"):
                read(file)
    write(tmp_path / "folder" / "a.txt", "a\n")
    os.mkfifo(tmp_path / "folder" / "b.txt")
    assert files_of(tmp_path / "folder") == [tmp_path / "folder" / "a.txt"]
    with pytest.raises(RcdeployError, match="cannot read"):
        files_of(tmp_path / ("x" * 5000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files(tmp_path: Path) -> None:
    file = write(tmp_path / "secret.txt", "a\n")
    file.chmod(0)
    with pytest.raises(RcdeployError, match="cannot read .*Permission denied"):
        build(tmp_path, file)


def test_damaged_parquet_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    whole = write_captions(tmp_path / "c.parquet", [f"caption {i} of many" for i in range(200)]).read_bytes()
    rng = np.random.default_rng(0)
    failures = 0
    for trial in range(150):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: int(rng.integers(4, len(whole)))]
        else:
            for at in rng.integers(0, len(whole), size=4):
                data[at] ^= int(rng.integers(1, 256))
        (tmp_path / "d.parquet").write_bytes(data)
        try:
            build(tmp_path, tmp_path / "d.parquet").close()
        except RcdeployError as error:
            assert "d.parquet" in str(error) or "empty" in str(error)
            failures += 1
    assert failures > 100


def test_a_pattern_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS_PER_CAPTION", 0.1)
    path = write(tmp_path / "c.txt", "a cat\n" * 1000 + "a" * 60 + "!\n")
    with pytest.raises(RcdeployError, match=r"'\(a\+\)\+b' takes more than 0.1 s for the caption 'aaaa"):
        build(tmp_path, path, exclude=("(a+)+b",))
    with pytest.raises(RcdeployError, match="one of 2 regular expressions takes more than"):
        WholeWordPatterns(["cat", "(a+)+b"]).matches(["a" * 60 + "!"])
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    slow_in_all = ["a" * 16 + "!"] * 100  # many captions, each of them quickly read
    assert WholeWordPatterns(["(a+)+b"]).matches(slow_in_all) == [False] * 100
    for expression in ("a{99999999999}", "(" * 5000 + ")" * 5000):
        with pytest.raises(RcdeployError, match="is no regular expression"):
            WholeWordPatterns([expression])
