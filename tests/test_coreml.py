"""Core ML's model packages, converted and read back, not run: `make test-coreml`, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcdeploy.progress import no_progress
from rcdeploy_export.coreml_package import MODEL, check_structure
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

pytestmark = pytest.mark.coreml


def test_every_network_is_converted_and_its_structure_is_checked(small_model: Path, tmp_path: Path) -> None:
    options = ExportOptions(format="coreml", precision="fp16")
    manifest = export_package(ExportSource.open(small_model), tmp_path / "p", options, no_progress)
    assert Manifest.read(tmp_path / "p", "package").wrong_files(tmp_path / "p") == []
    assert manifest.facts["parity"] == [] and manifest.facts["static_size"] == [64, 64]
    assert manifest.facts["versions"].keys() == {"torch", "coremltools"}
    assert manifest.onnx["unet"]["inputs"]["timestep"] == {"type": "int32", "shape": [1]}
    for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        assert check_structure(name, tmp_path / "p" / name / MODEL, manifest.onnx[name]) > 20
    wrong = {**manifest.onnx["unet"], "inputs": {"sample": {"type": "float", "shape": [9, 4, 8, 8]}}}
    with pytest.raises(RcdeployError, match="expected were"):
        check_structure("unet", tmp_path / "p/unet" / MODEL, wrong)
