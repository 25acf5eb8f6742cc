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
def test_it_generates_where_nothing_else_is_installed(package: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "device", with_pip=True)
    python = tmp_path / "device/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(RUNTIME)], check=True, capture_output=True)
    done = subprocess.run([python, "-c", SCRIPT, str(package)], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    print(result)
    assert result["size"] == [64, 64] and result["heavy"] == []
    commands = {"a.png": [python, "-m", "rcdeploy_runtime"], "b.png": [tmp_path / "device/bin/rcdeploy-runtime"]}
    for name, command in commands.items():
        subprocess.run([*command, "generate", str(package), "a bag", "--steps", "2", "-q", "-o", name], check=True)
        assert (tmp_path / name).is_file()
    typed = subprocess.run([python, "-c", "import rcdeploy_runtime as r; print(r.__path__[0])"], capture_output=True)
    assert (Path(typed.stdout.decode().strip()) / "py.typed").is_file()
    refused = subprocess.run([python, "-m", "rcdeploy_runtime", "build-engine", str(package)], capture_output=True)
    assert refused.returncode == 2 and b"tensorrt" in refused.stderr
