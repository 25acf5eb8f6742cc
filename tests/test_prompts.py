"""Prompt pools: every kind of source, what is kept and what is dropped, damage, drawing, and the command line."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rcdeploy.cli.prompts import app
from rcdeploy.prompts import pool as pool_module
from rcdeploy.prompts import readers
from rcdeploy.prompts.filters import PoolOptions, UniformSample
from rcdeploy.prompts.pool import PromptPool, SourceCounts
from rcdeploy.prompts.pool_builder import build_pool
from rcdeploy_runtime.errors import RcdeployError

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


@pytest.mark.parametrize("column", readers.COLUMNS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_that_are_found(tmp_path: Path, kind: str, column: str) -> None:
    path = write_captions(tmp_path / f"c.{kind}", ["one"], column)
    assert list(build(tmp_path, path)) == ["one"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_that_are_not_found(tmp_path: Path, kind: str) -> None:
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


def test_normalised_and_deduplicated_across_files(tmp_path: Path) -> None:
    a = write(tmp_path / "a.txt", "  a   cat\t\nA cat\na cat\n \u3000 \n")
    b = write_captions(tmp_path / "b.jsonl", ["a\ncat", "a dog"])
    with build(tmp_path, a, b) as pool:
        assert list(pool) == ["a cat", "A cat", "a dog"]
        assert [(s.rows, s.kept, s.empty, s.duplicate) for s in pool.facts.sources] == [
            (4, 2, 1, 1), (2, 1, 0, 1),
        ]  # fmt: skip
        dropped = {why: n for why, n in pool.facts.dropped.items() if n}
        assert dropped == {"empty": 1, "duplicate": 2}
        first = pool.digest
    with build(tmp_path, a, b, deduplicate=False) as pool:
        assert list(pool) == ["a cat", "A cat", "a cat", "a cat", "a dog"] and pool.digest != first
    with build(tmp_path, a, b) as pool:
        assert pool.digest == first


def test_deduplication_over_many_batches(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 120_000, size=300_000).tolist()
    path = write(tmp_path / "c.txt", "".join(f"caption number {i}\n" for i in numbers))
    with build(tmp_path, path) as pool:
        assert list(pool) == [f"caption number {i}" for i in dict.fromkeys(numbers)]


def test_include_and_exclude_match_whole_words(tmp_path: Path) -> None:
    texts = ["A CAT.", "category", "two cats", "a cat with a watermark", "stock photo of a cat", "a dog", "cat_1"]
    path = write(tmp_path / "c.txt", "\n".join(texts))
    with build(tmp_path, path, include=["cats?"], exclude=["watermark(ed)?", r"stock\s+photos?"]) as pool:
        assert list(pool) == ["A CAT.", "two cats"]
        assert source_of(pool).filtered == 5
        assert pool.facts.options["include"] == ["cats?"]
    assert list(build(tmp_path, path, include=["dog", r"cat\w+"])) == ["category", "two cats", "a dog", "cat_1"]
    for wrong in ("(", "a)|(b", "[z-a]"):
        with pytest.raises(RcdeployError, match="is no regular expression"):
            build(tmp_path, path, include=[wrong])


def test_lengths_and_scripts_are_counted_by_the_first_reason(tmp_path: Path) -> None:
    lines = ["ok", "a  b", "a cat – “très” bon 🚀", "кот", "a 猫 here", "ελλάδα", "x" * 30, "", "a dog", "ﬁne ｗｉｄｅ"]
    path = write(tmp_path / "c.txt", "".join(f"{line}\n" for line in lines))
    with build(tmp_path, path, min_length=3, max_length=29, script="latin", exclude=["dog"]) as pool:
        assert list(pool) == ["a b", "a cat – “très” bon 🚀", "ﬁne ｗｉｄｅ"]
        counted = {
            why: getattr(source_of(pool), why) for why in ("rows", "kept", "empty", "length", "script", "filtered")
        }
        assert counted == {"rows": 10, "kept": 3, "empty": 1, "length": 2, "script": 3, "filtered": 1}
    with pytest.raises(RcdeployError, match="no caption has 9 characters or more, and 3 or fewer"):
        build(tmp_path, path, min_length=9, max_length=3)
    with pytest.raises(RcdeployError, match="'greek' is not known"):
        build(tmp_path, path, script="greek")
    with pytest.raises(RcdeployError, match="1 rows are empty, 9 rows are too short or too long, and there"):
        build(tmp_path, path, min_length=99)


def test_a_sample_has_exactly_the_size_and_keeps_the_order(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", "".join(f"a{i}\n" for i in range(3000)) + "a7\n")
    second = write(tmp_path / "b.txt", "".join(f"b{i}\n" for i in range(1000)))
    everything = [*(f"a{i}" for i in range(3000)), *(f"b{i}" for i in range(1000))]
    with build(tmp_path, first, second, sample=500, seed=3) as pool:
        kept = list(pool)
        assert len(kept) == len(set(kept)) == 500 and kept == [t for t in everything if t in set(kept)]
        assert pool.manifest.wrong_files(pool.folder) == []
        a, b = source_of(pool, 0), source_of(pool, 1)
        assert a.kept + b.kept == 500 and a.kept == sum(t.startswith("a") for t in kept)
        assert a.not_drawn == 3000 - a.kept and a.duplicate == 1 and a.rows == 3001
        digest = pool.digest
    assert build(tmp_path, first, second, sample=500, seed=3).digest == digest
    assert build(tmp_path, first, second, sample=500, seed=4).digest != digest
    assert list(build(tmp_path, first, second, sample=4000)) == everything
    assert len(build(tmp_path, first, second, sample=10**6)) == 4000


def test_a_sample_is_uniform_and_lets_go_early() -> None:
    size, drawn = 1000, np.zeros(200, int)
    for seed in range(40):
        sample = UniformSample(size, seed)
        texts = [str(i) for i in range(10_000)]
        # the bound is lowered between the parts, as in a long build
        candidates = [
            t for start in range(0, 200_000, 10_000) for t in sample.candidates([f"{start}-{t}" for t in texts])
        ]
        assert len(candidates) < 120_000
        chosen = [t for t, is_in in zip(candidates, sample.selected(), strict=True) if is_in]
        assert len(chosen) == size
        places = np.array([int(t.split("-")[0]) + int(t.split("-")[1]) for t in chosen])
        drawn += np.bincount(places // 1000, minlength=200)
    expected = 40 * size / 200
    assert ((drawn - expected) ** 2 / expected).sum() < 199 + 5 * np.sqrt(2 * 199)  # chi-squared, 5 sigma


def test_an_empty_pool_is_refused_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "c.txt", "a cat\n \n")
    build(tmp_path, path).close()
    for sources, options in (([path], {"include": ["dog"]}), ([write(tmp_path / "e.txt", "")], {})):
        with pytest.raises(RcdeployError, match="would be empty"):
            build(tmp_path, *sources, **options)
        assert list(PromptPool.open(tmp_path / "pool")) == ["a cat"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.txt", "e.txt", "pool"]


def test_nothing_but_a_pool_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "c.txt", "a cat\n")
    write(tmp_path / "precious" / "thesis.tex", "years of work")
    with pytest.raises(RcdeployError, match="exists and is not replaced"):
        build_pool([path], tmp_path / "precious")
    with pytest.raises(RcdeployError, match="exists and is not replaced"):
        build_pool([path], path)
    build(tmp_path, path).close()
    inside = write(tmp_path / "pool" / "more.txt", "a dog\n")
    with pytest.raises(RcdeployError, match="would be replaced"):
        build(tmp_path, inside)
    assert inside.exists() and (tmp_path / "precious" / "thesis.tex").exists()
    (tmp_path / "new").mkdir()
    assert len(build_pool([path], tmp_path / "new")) == 1


def test_a_killed_build_leaves_no_pool_and_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "c.txt", "".join(f"caption {i}\n" for i in range(200_000)))
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom rcdeploy.prompts.pool_builder import build_pool\n"
        "def stop(stage, rows, total):\n    print(rows, flush=True); time.sleep(60)\n"
        "build_pool([Path(sys.argv[1])], Path(sys.argv[2]), progress=stop)\n"
    )
    old = build_pool([write(tmp_path / "old.txt", "old\n")], tmp_path / "old")
    for out in ("new", "old"):
        command = [sys.executable, "-c", program, str(path), str(tmp_path / out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and int(process.stdout.readline()) > 0
            process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "new").exists()
    assert PromptPool.open(tmp_path / "old").digest == old.digest
    halves = [p for p in tmp_path.iterdir() if p.name.endswith(".part")]
    assert len(halves) == 2
    for half in halves:
        with pytest.raises(RcdeployError, match=r"no manifest\.json"):
            PromptPool.open(half)


@pytest.fixture
def thousand(tmp_path: Path) -> PromptPool:
    return build(tmp_path, write(tmp_path / "c.txt", "".join(f"Satz {i} é\n" for i in range(1000))))


def test_indices(thousand: PromptPool) -> None:
    assert len(thousand) == 1000 and thousand[0] == "Satz 0 é"
    assert thousand.take([np.int32(999)]) == ["Satz 999 é"]  # type: ignore[list-item]
    assert thousand.take([3, 1, 3]) == ["Satz 3 é", "Satz 1 é", "Satz 3 é"]
    assert thousand.take(np.array([5], np.uint8)) == ["Satz 5 é"]
    for wrong in (-1, 1000, -1000):
        with pytest.raises(IndexError):
            thousand[wrong]
    with pytest.raises(TypeError):
        thousand["0"]  # type: ignore[index]


def test_iteration_crosses_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thousand: PromptPool) -> None:
    for rows in (1, 7, 1000, 4096):
        monkeypatch.setattr(pool_module, "_ITERATION_ROWS", rows)
        assert list(thousand) == [f"Satz {i} é" for i in range(1000)]


def test_draws_are_uniform_and_repeatable(thousand: PromptPool) -> None:
    draws = thousand.draw(np.random.default_rng(7), 100_000)
    counts = np.bincount([int(d.split()[1]) for d in draws], minlength=1000)
    chi_square = float(((counts - 100) ** 2 / 100).sum())
    assert abs(chi_square - 999) < 5 * np.sqrt(2 * 999)  # 999 degrees of freedom, five standard deviations
    assert thousand.draw(np.random.default_rng(7), 100_000) == draws
    assert thousand.draw(np.random.default_rng(7), 0) == []
    with pytest.raises(ValueError):
        thousand.draw(np.random.default_rng(7), -1)


def truncate(name: str) -> Callable[[Path], Any]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def last_offset_wrong(folder: Path) -> None:
    data = (folder / "offsets.bin").read_bytes()
    (folder / "offsets.bin").write_bytes(data[:-8] + (1).to_bytes(8, "little"))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "prompts short": (truncate("prompts.bin"), r"damaged: prompts\.bin has [\d,]+ bytes instead of"),
    "offsets short": (truncate("offsets.bin"), r"damaged: offsets\.bin has"),
    "prompts missing": (lambda f: (f / "prompts.bin").unlink(), r"prompts\.bin is missing"),
    "offsets wrong": (last_offset_wrong, "does not span"),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), "is no prompt_pool folder"),
    "manifest bare": (
        lambda f: (f / "manifest.json").write_text('{"kind": "prompt_pool", "schema_version": 1}'),
        "count: missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_on_opening(thousand: PromptPool, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(thousand.folder)
    with pytest.raises(RcdeployError, match=message):
        PromptPool.open(thousand.folder)


def test_damage_in_the_middle_is_found_on_reading(thousand: PromptPool) -> None:
    offsets = np.fromfile(thousand.folder / "offsets.bin", "<u8")
    offsets[[5, 6]] = offsets[[6, 5]]
    offsets[9] += 1 << 40
    offsets.tofile(thousand.folder / "offsets.bin")
    with (thousand.folder / "prompts.bin").open("r+b") as f:
        f.write(b"\xff")
    pool = PromptPool.open(thousand.folder)
    for index in (5, 8, 0):
        with pytest.raises(RcdeployError, match=f"of prompt {index} are wrong"):
            pool[index]
    with pytest.raises(RcdeployError, match="of prompt 0 are wrong"):
        list(pool)
    with (thousand.folder / "prompts.bin").open("r+b") as f:
        f.write(b"S")
    with pytest.raises(RcdeployError, match="of prompt 5 are wrong"):
        list(pool)


def test_threads_share_a_pool(thousand: PromptPool) -> None:
    def read(seed: int) -> bool:
        indices = np.random.default_rng(seed).integers(0, 1000, size=3000)
        return thousand.take(indices) == [f"Satz {i} é" for i in indices]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(16)))


def test_threads_share_a_pool_without_pread(thousand: PromptPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pread")
    test_threads_share_a_pool(PromptPool.open(thousand.folder))


def _first(pool: PromptPool) -> str:
    return pool[0]


def test_pickle_and_processes(thousand: PromptPool, tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(thousand))
    thousand.close()
    assert copy[999] == "Satz 999 é"
    with multiprocessing.get_context("fork").Pool(1) as workers:
        assert workers.map(_first, [copy]) == ["Satz 0 é"]
    data = pickle.dumps(copy)
    build(tmp_path, write(tmp_path / "d.txt", "another\n"))
    assert copy[999] == "Satz 999 é"  # open files outlive the folder
    with pytest.raises(RcdeployError, match="was replaced"):
        pickle.loads(data)


def test_close(thousand: PromptPool) -> None:
    with thousand as pool:
        assert pool[1]
    thousand.close()
    with pytest.raises(ValueError, match="closed"):
        thousand[0]


def test_progress_counts_rows(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = write(tmp_path / "c.txt", "".join(f"{i}\n" for i in range(100_000)))
    build_pool([path], tmp_path / "pool", progress=lambda *call: calls.append(call[:3]))
    assert len(calls) >= 1 and calls[-1] == ("reading captions", 100_000, 0)
    pytest.importorskip("pyarrow")
    path = write_captions(tmp_path / "c.parquet", ["a", "b"])
    build_pool([path], tmp_path / "pool", progress=lambda *call: calls.append(call[:3]))
    assert ("reading captions", 2, 2) in calls


def test_command_line(tmp_path: Path) -> None:
    path, out = write_captions(tmp_path / "c.csv", [*CAPTIONS, "a cat", "[bold] \x1b[31m red"]), str(tmp_path / "pool")
    run = CliRunner().invoke
    result = run(app, ["build", str(path), "--out", out, "--quiet", "--exclude", "rocket"])
    assert result.exit_code == 0 and "5 prompts" in result.stdout and result.stderr == ""
    result = run(app, ["build", str(path), "--out", out, "--no-deduplicate", "--json"])
    summary = json.loads(result.stdout)
    assert summary["count"] == 7 and summary["sources"][0]["rows"] == 7 and len(summary["digest"]) == 64
    result = run(app, ["build", str(path), "--out", out])
    assert result.exit_code == 0 and "6 prompts" in result.stdout and "rows/s" in result.stderr
    result = run(app, ["info", out])
    assert "a cat" in result.stdout and "duplicate" in result.stdout
    assert json.loads(run(app, ["info", out, "--json"]).stdout)["first"] == CAPTIONS
    drawn = json.loads(run(app, ["sample", out, "-n", "50", "--seed", "3", "--json"]).stdout)
    assert len(drawn) == 50 and set(drawn) == {*CAPTIONS, "[bold] \x1b[31m red"}
    shown = run(app, ["sample", out, "-n", "50", "--seed", "3"]).stdout
    assert len(shown.splitlines()) == 50 and "\x1b" not in shown and "[bold] \N{REPLACEMENT CHARACTER}[31m red" in shown
    failed = run(app, ["info", str(tmp_path)])
    assert isinstance(failed.exception, RcdeployError)
    assert run(app, ["build", str(path)]).exit_code == 2  # --out is missing


def test_neither_pool_nor_command_line_loads_torch() -> None:
    program = "import sys, rcdeploy.cli.prompts\nassert 'numpy' not in sys.modules\nimport rcdeploy.prompts.pool\n"
    heavy = "assert not {'torch', 'pyarrow', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program + heavy], check=True)
