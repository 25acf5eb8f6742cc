"""ExecuTorch's programs, executed: `make test-executorch`, in an environment of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.progress import no_progress
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

pytestmark = pytest.mark.executorch
PROMPT, SEED = "a red shirt", 5
GUIDED = SamplingDefaults("ddim", 10, 4.0)


@pytest.fixture(scope="module")
def pte(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("executorch") / "tiny"
    options = ExportOptions(format="executorch", sampling=GUIDED)
    export_package(ExportSource.open(small_model), folder, options, no_progress)
    return folder


def test_every_network_equals_torch(pte: Path) -> None:
    manifest = Manifest.read(pte, "package")
    assert manifest.wrong_files(pte) == []
    facts = manifest.facts
    assert facts["format"] == "executorch" and facts["opset"] is None and facts["static_size"] == [64, 64]
    assert facts["versions"].keys() == {"torch", "executorch"}
    assert {p["component"] for p in facts["parity"]} == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert all(0 < p["relative_error"] < 1e-4 for p in facts["parity"])
    assert manifest.onnx["unet"]["inputs"]["sample"] == {"type": "float", "shape": [2, 4, 8, 8]}


def test_it_generates_what_diffusers_generates(pte: Path, small_model: Path) -> None:
    images, record = TextToImage.load(pte, threads=1).generate(PROMPT, seed=SEED)
    assert record["num_inference_steps"] == 10
    noise = np.random.Generator(np.random.Philox(key=SEED)).standard_normal((1, 4, 8, 8), np.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(small_model)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise)
    expected = pipeline(PROMPT, latents=latents, guidance_scale=4.0, num_inference_steps=10).images[0]
    assert np.abs(np.asarray(images[0], int) - np.asarray(expected, int)).max() <= 1


def test_another_size_and_a_damaged_program_are_refused(pte: Path, tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="64 x 64 pixels only"):
        TextToImage.load(pte).generate(PROMPT, width=128)
    from rcdeploy_runtime.executorch_session import ExecutorchSession

    (tmp_path / "signature.json").write_bytes((pte / "unet/signature.json").read_bytes())
    (tmp_path / "model.pte").write_bytes((pte / "unet/model.pte").read_bytes()[:1000])
    with pytest.raises(RcdeployError, match="ExecuTorch cannot load"):
        ExecutorchSession(tmp_path)


def test_int8_is_smaller_and_measured(pte: Path, small_model: Path, tmp_path: Path) -> None:
    """One row, since the model is sampled without guidance, as few-step students are; calibrated at its own size."""
    (tmp_path / "captions.txt").write_text("a red bag\na blue coat\na shoe\n")
    result = CliRunner().invoke(
        app,
        ["export", str(small_model), "-o", "p", "--format", "executorch", "--precision", "int8", "--no-encoder"]
        + ["--guidance-scale", "1", "--steps", "2", "--prompts", "captions.txt", "--pictures", "2"]
        + ["--size", "64x96", "--json"],
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout[result.stdout.index("{") :])["facts"]
    assert facts["precision"] == {"text_encoder": "int8", "unet": "int8", "vae_decoder": "fp32"}
    assert facts["seconds_per_step"].keys() == {"fp32", "int8"} and facts["pictures"]["count"] == 2
    manifest = Manifest.read(tmp_path / "p", "package")
    assert manifest.onnx["unet"]["inputs"]["sample"]["shape"] == [1, 4, 8, 12]
    assert manifest.size_of("unet") < Manifest.read(pte, "package").size_of("unet")
