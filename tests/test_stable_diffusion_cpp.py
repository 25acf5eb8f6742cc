"""Full-size models in stable-diffusion.cpp's Python binding: `make test-sdcpp`, in an environment of its own.

Each is opened by a process of its own, which may crash. build/sdcpp is what tests/full_size_models.py writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.sdcpp
ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "build/sdcpp"


def draw(name: str, model: str, image: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    folder = MODELS / name
    arguments = json.dumps({**json.loads((folder / "settings.json").read_text(encoding="utf-8")), **settings})
    script = ROOT / "docs/consumers/sdcpp_binding.py"
    command = [sys.executable, str(script), str(folder / model), arguments, str(image)]
    return subprocess.run(command, capture_output=True, text=True)


def difference(image: Path, expected: Path) -> int:
    """The largest, in grey levels."""
    first, second = (np.frombuffer(file.read_bytes(), np.uint8).astype(int) for file in (image, expected))
    assert second.std() > 20
    return int(np.abs(first - second).max())


def test_a_student_in_its_folder_draws_the_same(tmp_path: Path) -> None:
    done = draw("b-tiny", "model", tmp_path / "image")
    assert done.returncode == 0, done.stderr[-2000:]
    assert difference(tmp_path / "image", MODELS / "b-tiny/expected.rgb") <= 2


def test_a_tiny_decoder_draws_the_same(tmp_path: Path) -> None:
    decoder = str(MODELS / "b-tiny/decoder/diffusion_pytorch_model.safetensors")
    done = draw("b-tiny", "model", tmp_path / "image", taesd_path=decoder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert difference(tmp_path / "image", MODELS / "b-tiny/expected_tiny.rgb") <= 2


@pytest.mark.parametrize(("name", "model"), [("b-tiny", "model.safetensors"), ("b-base", "model")])
def test_what_it_refuses(name: str, model: str, tmp_path: Path) -> None:
    """Should it open one of these some day, docs/compatibility.md and the help of `rcdeploy export` are out of date."""
    assert draw(name, model, tmp_path / "image").returncode == 1
    assert not (tmp_path / "image").exists()
