"""One evaluation folder filled by several processes, and by processes that are killed or stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import PAIRED
from evaluation import shard_bytes

from rcdeploy.evaluate.evaluation import evaluate
from rcdeploy.evaluate.image_set import open_image_set
from rcdeploy.evaluate.image_source import open_image_source
from rcdeploy.evaluate.metrics import open_scorer
from rcdeploy.evaluate.spec import EvaluationSpec
from rcdeploy.evaluate.target import EvaluationTarget
from rcdeploy.model_folder import resolve

# from a clean server: a fork of this process would inherit locks that threads of other tests' libraries hold
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["diffusers", "transformers", "rcdeploy.evaluate.image_source"])


# several processes, and killed ones


def _evaluate(teacher: Path, folder: Path, kill_at: int | None = None) -> None:
    """What the command does, in shards of 5; kills itself at the report `kill_at`."""
    torch.set_num_threads(1)
    spec = EvaluationSpec(num_inference_steps=2, judge=teacher / "judge", metrics=("judge",))
    source = open_image_source(EvaluationTarget.of(resolve(teacher)), device="cpu")
    scorer = open_scorer(spec, size=(64, 64))
    reports = iter(range(1000))

    def progress(*_: object) -> None:
        if next(reports) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    image_set = open_image_set(folder, PAIRED, {"a": 1}, size=(64, 64), shard_size=5, batch_size=3)
    evaluate(image_set, source.generate, scorer, spec, progress=progress)


@pytest.fixture(scope="module")
def uninterrupted(judged: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "set"
    _evaluate(judged, folder)
    shards = shard_bytes(folder)
    assert len(shards) == 8, "four shards of images, four of the judge's outputs"
    return shards


@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 7, pytest.param(15, marks=pytest.mark.slow)])
def test_a_killed_process_changes_nothing(
    judged: Path, tmp_path: Path, uninterrupted: dict[str, bytes], at: int
) -> None:
    worker = FORK.Process(target=_evaluate, args=(judged, tmp_path / "set", at))
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    whole = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").glob("*.safetensors")}
    assert len(whole) < 8
    _evaluate(judged, tmp_path / "set")
    assert shard_bytes(tmp_path / "set") == uninterrupted
    assert {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in whole} == whole, "whole shards are kept"
    assert not list((tmp_path / "set").glob("*.claim"))


def test_two_processes_share_a_folder(judged: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    workers = [FORK.Process(target=_evaluate, args=(judged, tmp_path / "set")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [w.exitcode for w in workers] == [0, 0]
    assert shard_bytes(tmp_path / "set") == uninterrupted
    assert not list((tmp_path / "set").glob("*.claim"))


def test_a_truncated_shard_is_made_anew(judged: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    _evaluate(judged, tmp_path / "set")
    for name in ("pictures-00002.safetensors", next(n for n in uninterrupted if n.startswith("judge-"))):
        file = tmp_path / "set" / name
        file.write_bytes(file.read_bytes()[:-7])
    _evaluate(judged, tmp_path / "set")
    assert shard_bytes(tmp_path / "set") == uninterrupted
