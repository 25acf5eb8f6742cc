"""rcdeploy-runtime built and installed by itself: what a device has, and nothing else."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parent.parent / "runtime"

SCRIPT = """
import json, sys, time
begun = time.perf_counter()
from rcdeploy_runtime import TextToImage
imported = time.perf_counter() - begun
images, record = TextToImage.load(sys.argv[1]).generate("a bag", seed=1, num_inference_steps=3)
heavy = [m for m in ("torch", "transformers", "diffusers", "rcdeploy", "onnx") if m in sys.modules]
print(json.dumps({"import": imported, "size": images[0].size, "heavy": heavy}))
"""


@pytest.mark.slow
def test_it_draws_where_nothing_else_is_installed(package: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "device", with_pip=True)
    python = tmp_path / "device/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(RUNTIME)], check=True, capture_output=True)
    done = subprocess.run([python, "-c", SCRIPT, str(package)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    print(found)
    assert found["size"] == [64, 64] and found["heavy"] == []
    words = [python, "-m", "rcdeploy_runtime", "generate", str(package), "a bag", "--steps", "2", "-q", "-o", "bag.png"]
    subprocess.run(words, check=True)
    assert (tmp_path / "bag.png").is_file()
    refused = subprocess.run([python, "-m", "rcdeploy_runtime", "build-engine", str(package)], capture_output=True)
    assert refused.returncode == 2 and b"tensorrt" in refused.stderr
