"""Building pools: normalisation, filters, deduplication, samples, replacing, interruptions, the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from caption_files import CAPTIONS, build, source_of, write, write_captions
from typer.testing import CliRunner

from rcdeploy.cli.prompts import app
from rcdeploy.prompts import uniform_sample
from rcdeploy.prompts.pool import PromptPool
from rcdeploy.prompts.pool_builder import build_pool
from rcdeploy.prompts.uniform_sample import SAMPLED, UniformSample
from rcdeploy_runtime.errors import RcdeployError


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
    for wrong in ("(", "a)|(b", "[z-a]", "\udc80"):
        with pytest.raises(RcdeployError, match="is no regular expression"):
            build(tmp_path, path, include=[wrong])


def test_lengths_and_scripts_are_counted_by_the_first_reason(tmp_path: Path) -> None:
    lines = ["ok", "a  b", "a cat – “très” bon 🚀", "кот", "a 猫 here", "ελλάδα", "x" * 30, "", "a dog", "ﬁne ｗｉｄｅ"]
    path = write(tmp_path / "c.txt", "".join(f"{line}\n" for line in lines))
    with build(tmp_path, path, min_length=3, max_length=29, script="latin", exclude=["dog"]) as pool:
        assert list(pool) == ["a b", "a cat – “très” bon 🚀", "ﬁne ｗｉｄｅ"]
        counts = {
            why: getattr(source_of(pool), why) for why in ("rows", "kept", "empty", "length", "script", "filtered")
        }
        assert counts == {"rows": 10, "kept": 3, "empty": 1, "length": 2, "script": 3, "filtered": 1}
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
        assert a.not_drawn + a.duplicate + a.kept == a.rows == 3001 and a.duplicate == ("a7" in kept)
        digest = pool.digest
    assert build(tmp_path, first, second, sample=500, seed=3).digest == digest
    assert build(tmp_path, first, second, sample=500, seed=4).digest != digest
    assert list(build(tmp_path, first, second, sample=4000)) == everything
    assert len(build(tmp_path, first, second, sample=10**6)) == 4000


@pytest.mark.parametrize("distinct", [True, False])
def test_a_sample_is_uniform_and_drops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distinct: bool) -> None:
    # the bound is lowered between the parts, as in a long build
    monkeypatch.setattr(uniform_sample, "MIN_PENDING", 500)
    size, count, seeds, bins = 400, 20_000, 40, 40
    texts = [str(i) for i in range(count)]
    histogram = np.zeros(bins, int)
    for seed in range(seeds):
        sample = UniformSample(size, seed, tmp_path / "keys", distinct=distinct)
        candidates = [t for i in range(0, count, 1000) for t in sample.candidates(texts[i : i + 1000])]
        assert len(candidates) < 4000
        chosen = [int(t) for t, verdict in zip(candidates, sample.verdicts(), strict=True) if verdict == SAMPLED]
        assert len(chosen) == size and not (tmp_path / "keys").exists()
        histogram += np.bincount(np.array(chosen) * bins // count, minlength=bins)
    expected = seeds * size / bins
    degrees = bins - 1
    assert ((histogram - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)  # chi-squared, 5 sigma


def test_a_frequent_caption_is_no_likelier_in_a_sample(tmp_path: Path) -> None:
    """Half of the rows are one of ten captions; each text's sample is the same wherever and however often it stands."""
    frequent = [f"often {i}" for i in range(10)]
    rare = [f"rare {i}" for i in range(2000)]
    mixed = [text for i, text in enumerate(rare) for text in (text, frequent[i % 10])]
    once = build(tmp_path, write(tmp_path / "a.txt", "\n".join([*frequent, *rare])), sample=100)
    texts = set(once)
    with build(tmp_path, write(tmp_path / "b.txt", "\n".join(reversed(mixed))), sample=100) as pool:
        assert set(pool) == texts and len(pool) == 100
        counts = source_of(pool)
        assert counts.duplicate == sum(199 for text in frequent if text in texts)
        assert counts.rows == 4000 == counts.kept + counts.duplicate + counts.not_drawn
    with build(tmp_path, tmp_path / "b.txt", sample=100, deduplicate=False) as pool:
        often = sum(text in frequent for text in pool)
        assert len(pool) == 100 and 25 < often < 75 and source_of(pool).duplicate == 0


def test_a_sample_needs_the_memory_of_its_size(tmp_path: Path) -> None:
    """Keys of what cannot be in it are not kept: 400,000 different captions, a sample of 1,000."""
    sample = UniformSample(1000, 0, tmp_path / "keys")
    for start in range(0, 400_000, 20_000):
        sample.candidates([f"caption {i}" for i in range(start, start + 20_000)])
        held = len(sample._smallest) + sum(map(len, sample._pending))
        assert held < 1000 + 1000 // 4 + 65_536 + 20_000
    assert (tmp_path / "keys").stat().st_size < 8 * 150_000
    assert (sample.verdicts() == SAMPLED).sum() == 1000


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
    samples = json.loads(run(app, ["sample", out, "-n", "50", "--seed", "3", "--json"]).stdout)
    assert len(samples) == 50 and set(samples) == {*CAPTIONS, "[bold] \x1b[31m red"}
    output = run(app, ["sample", out, "-n", "50", "--seed", "3"]).stdout
    assert (
        len(output.splitlines()) == 50 and "\x1b" not in output and "[bold] \N{REPLACEMENT CHARACTER}[31m red" in output
    )
    failed = run(app, ["info", str(tmp_path)])
    assert isinstance(failed.exception, RcdeployError)
    assert run(app, ["build", str(path)]).exit_code == 2  # --out is missing


def test_neither_pool_nor_command_line_loads_torch() -> None:
    program = "import sys, rcdeploy.cli.prompts\nassert 'numpy' not in sys.modules\nimport rcdeploy.prompts.pool\n"
    heavy = "assert not {'torch', 'pyarrow', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program + heavy], check=True)
