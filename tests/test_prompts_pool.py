"""Reading prompt pools: indices, sampling, damage, threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caption_files import build, write

from rcdeploy.prompts import pool as pool_module
from rcdeploy.prompts.pool import PromptPool
from rcdeploy_runtime.errors import RcdeployError


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


def test_damage_in_the_middle_is_reported_on_reading(thousand: PromptPool) -> None:
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
