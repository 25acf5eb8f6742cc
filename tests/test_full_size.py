"""SD-1.4's shapes, with random weights: memory and seconds a step are printed (pytest -m slow -s)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cache_and_two_steps_of_c_micro_and_b_tiny(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "full_size.py"), "--folder", str(tmp_path / "full")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(done.stdout)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["student"] for row in rows] == ["c-micro", "b-tiny"]
    for row in rows:
        assert 0 < row["loss"] < 1e3
        assert (tmp_path / "full" / row["student"] / "pipeline/unet/diffusion_pytorch_model.safetensors").is_file()
