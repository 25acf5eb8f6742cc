"""`make gpu` without a GPU: parts that die or take too long are rows, tables of made-up figures, the page's markers."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import gpu
import gpu_tables

from rcdeploy_runtime.errors import RcdeployError

ROOT = Path(__file__).parent.parent

MACHINE = {"gpus": [{"name": "NVIDIA GeForce RTX 4090", "memory_gb": 25.4}]}
STEP = {
    "student": "c-micro",
    "precision": "fp16",
    "batch": 16,
    "flops_needed": 1.652e13,
    "gemm_flops": 1e14,
    "rows": [
        {"kind": "plain", "seconds": 0.6, "memory": 2e10, "synchronisations": 9, "where": ["loader.py:3"]},
        {"kind": "ours", "seconds": 0.4, "memory": 1e10, "synchronisations": 0.5, "where": ["step.py:7"]},
        {"kind": "ours, checkpointing", "error": "CUDA out of memory"},
    ],
}
CACHE = {"count": 32, "batch": 16, "steps": 25, "precision": "fp16", "difference": 0.01}
CACHE["rows"] = [{"kind": "diffusers", "seconds": 32.0}, {"kind": "ours", "seconds": 16.0}]


def part(name: str, code: str = "", limit: int = 60, lines: str = "") -> gpu.Part:
    return gpu.Part(name, [sys.executable, "-c", code], limit, lines)


def outcome(name: str, *replies: Any, problem: str = "", lines: str = "") -> gpu.Outcome:
    return gpu.Outcome(part(name, lines=lines), 12.3, problem, "".join(f"{json.dumps(reply)}\n" for reply in replies))


def test_parts_that_die_are_rows_and_the_rest_goes_on() -> None:
    end = time.monotonic() + 100
    good = gpu.run(part("step x", "print('a library says'); print('{\"a\": 1}'); print(1e-05)"), end)
    assert (good.problem, good.replies) == ("", [{"a": 1}, 1e-05])
    dead = gpu.run(part("cache", "import sys; print('why', file=sys.stderr); sys.exit(3)"), end)
    assert dead.problem == "ended with 3: why" and dead.replies == []
    refused = gpu.run(part("latency", 'print(\'{"error": {"message": "no package"}}\')'), end)
    assert refused.problem == "no package"
    assert gpu.run(part("tests"), time.monotonic()).problem == "left out: no time"


def test_a_part_that_takes_too_long_ends_with_what_it_has_started(tmp_path: Path) -> None:
    child = f"import time; time.sleep(4); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    late = gpu.run(part("step", code, limit=1), time.monotonic() + 100)
    assert late.problem == "took longer than 1 s" and late.seconds < 15
    time.sleep(4)
    assert not (tmp_path / "alive").exists()


def test_the_tables() -> None:
    step = gpu_tables.steps([STEP], MACHINE)
    plain, ours, failed = step.splitlines()[4:7]
    # 1.652e13 in 0.4 s is a quarter of the RTX 4090's 165.2 TFLOPS
    assert ours == "| c-micro | ours | 0.4000 | 1.50 | 10.00 | 0.50 | 25% | 0.5 |"
    assert plain.split("|")[4] == " 1.00 " and "CUDA out of memory" in failed
    assert step.endswith("Ours waits at step.py:7.")
    assert "published" in step and "measured" in gpu_tables.steps([STEP], {"gpus": [{"name": "Unheard-of"}]})
    assert gpu_tables.caches(CACHE).splitlines()[-1] == "| ours | 2.00 | 2.00 |"
    ready = {"device": "cuda", "first_image_seconds": 3.0, "peak_device_memory_bytes": 2e9}
    lines = '{"component": "unet"}\n' * 3 + '{"component": "image"}\n' * 2
    timed = outcome("latency onnxruntime fp16", ready, 9.0, 0.002, 0.004, 9.0, 0.5, lines=lines)
    assert (
        gpu_tables.latencies([timed]).splitlines()[-1] == "| onnxruntime | fp16 | cuda | 3.00 | 0.500 | 3.00 | 2.00 |"
    )


def test_the_page_keeps_what_is_around_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs/gpu.md").read_text("utf-8"), encoding="utf-8")
    outcomes = [outcome("step c-micro", STEP), outcome("cache", problem="ended with 1: no memory | left")]
    gpu_tables.write(page, gpu_tables.text(outcomes))
    gpu_tables.write(page, gpu_tables.text(outcomes))  # a second time replaces the first
    written = page.read_text("utf-8")
    assert written.startswith("# On a GPU\n") and written.count("### A training step") == 1
    assert "### Filling" not in written and "| cache | 12 | ended with 1: no memory / left |" in written
    assert "torch " in written and "driver " in written
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(RcdeployError, match="has no lines"):
        gpu_tables.write(page, "x")
    assert page.read_text() == "nothing"


@pytest.mark.parametrize(
    ("card", "tflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", None),
    ],
)
def test_cards_are_known_by_their_names(card: str, tflops: float | None) -> None:
    assert gpu_tables.published_flops(card) == (tflops and tflops * 1e12)


def test_without_a_gpu_it_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2 and not (tmp_path / "work").exists()
    error = capsys.readouterr().err
    assert error.startswith("No GPU: torch") and "--device cpu" in error


@pytest.mark.slow
def test_every_part_walks_on_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(f"{gpu_tables.BEGIN}\n{gpu_tables.END}\n")
    options = ["--device", "cpu", "--batch", "2", "--steps", "1", "--count", "2", "--picture-steps", "1", "--teacher"]
    places = [str(ROOT / "examples/teachers/fashion"), "--work", str(tmp_path / "work"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, *places])
    monkeypatch.setattr(gpu, "SECONDS", 3600)
    gpu.main()
    written = page.read_text("utf-8")
    for heading in ("### A training step", "### Filling the latent cache", "### Latency"):
        assert heading in written, written
    assert written.count("| torch |") == 3 and written.count("| onnxruntime |") == 2 and "skipped" in written
