"""SD-1.4's shapes, with random weights: memory and seconds per step are printed (pytest -m slow -s)."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rcdeploy_runtime import TextToImage

EXAMPLES = Path(__file__).parent.parent / "examples"


def full_size(folder: Path, *arguments: str) -> list[dict]:
    command = [sys.executable, str(EXAMPLES / "full_size.py"), "--folder", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_c_micro_and_b_tiny_are_cached_for_trained_and_exported(tmp_path: Path) -> None:
    *runs, package = full_size(tmp_path / "full", "--export", "onnx:fp32")
    assert [row["student"] for row in runs] == ["c-micro", "b-tiny"]
    for row in runs:
        assert 0 < row["loss"] < 1e3
        assert (tmp_path / "full" / row["student"] / "pipeline/unet/diffusion_pytorch_model.safetensors").is_file()
    assert package["largest relative error"] < 1e-4 and package["UNet, MB"] > 800
    model = TextToImage.load(tmp_path / "full/c-micro-onnx-fp32")
    images, _ = model.generate("a photo of number 3", num_inference_steps=1, guidance_scale=1.0)
    assert images[0].size == (512, 512)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_koala_700m_takes_a_step_in_twenty_gigabytes(tmp_path: Path) -> None:
    """Of a teacher of SDXL's shape, in bf16; with an fp32 teacher it takes 23 GB."""
    if psutil.virtual_memory().available < 20.5e9:
        pytest.skip("needs 20.5 GB of free memory")
    (row,) = full_size(tmp_path, "--students", "koala-700m")
    assert 0 < row["loss"] < 1e3 and row["peak memory so far, GB"] <= 20
    assert (tmp_path / "xl/koala-700m/pipeline/unet/diffusion_pytorch_model.safetensors").is_file()
