"""TensorRT as far as it goes without a GPU: TensorRT-RTX parses every graph and builds engines ahead of time."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.progress import no_progress
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.engine_options import EngineOptions, parse_profile
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.trt_engines import build_engines, check_graphs

rtx = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="TensorRT-RTX is on PyPI for Linux on x86"
)


@rtx
def test_every_graph_is_read_and_built(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(check_graphs(package)) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    remarks: list[str] = []
    options = EngineOptions(max_batch=2, sizes=((32, 32), (64, 64), (96, 64)), compute_capabilities=("8.6", "8.9"))
    built = build_engines(package, tmp_path / "e", options, log=remarks.append)
    manifest = Manifest.read(built, "package")
    assert manifest.wrong_files(built) == [] and not list(built.rglob("*.onnx"))
    engines = manifest.facts["engines"]
    assert engines["builder"] == "tensorrt_rtx" and engines["compute_capabilities"] == ["8.6", "8.9"]
    assert engines["max_batch"] == 2 and engines["sizes"] == [[32, 32], [64, 64], [96, 64]]
    assert all(engines["bytes"][name] == (built / name / "model.engine").stat().st_size for name in engines["bytes"])
    with pytest.raises(RcdeployError, match="cuda-bindings|GPU"):
        TextToImage.load(built)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # beside it tensorrt may be there, which cannot read these
    with pytest.raises(RcdeployError, match="^tensorrt_rtx is not installed"):
        TextToImage.load(built)


@rtx
def test_an_unknown_compute_capability_leaves_nothing(package: Path, tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="SM86"):
        build_engines(package, tmp_path / "e", EngineOptions(compute_capabilities=("3.5",)))
    with pytest.raises(RcdeployError, match="for which GPUs"):
        build_engines(package, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_without_a_builder_the_package_is_written_and_the_command_printed(
    copied_graphs: None, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(app, ["export", str(small_model), "--format", "trt", "--out", "p"])
    assert result.exit_code == 0, result.output
    assert "python -m rcdeploy_runtime build-engine p" in result.output
    manifest = Manifest.read(tmp_path / "p", "package")
    assert manifest.facts["opset"] == 20 and manifest.facts["target"] == "trt"
    TextToImage.load(tmp_path / "p").generate("a bag", num_inference_steps=1)


def test_engines_that_were_asked_for_and_not_built_are_an_error(
    copied_graphs: None, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ONNX package stays, and the message says how to build from it later."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)

    arguments = ["export", str(small_model), "--format", "trt", "--out", "p", "--compute-capability", "8.6"]
    result = CliRunner().invoke(app, arguments)
    error = result.exception
    assert isinstance(error, RcdeployError), result.output
    assert "No engines were built: tensorrt_rtx is not installed" in error.message
    assert error.fix is not None and "The ONNX package p is complete" in error.fix
    assert "build-engine p --compute-capability 8.6" in error.fix
    assert Manifest.read(tmp_path / "p", "package").wrong_files(tmp_path / "p") == []


def test_options_of_engines_are_checked() -> None:
    assert parse_profile("256x256, 512x512,512x768") == ((256, 256), (512, 512), (512, 768))
    assert parse_profile("") is None
    for text in ("512", "256x256,512x512", "axb,1x1,2x2"):
        with pytest.raises(RcdeployError, match="three sizes"):
            parse_profile(text)
    for options, message in (
        ({"workspace_gb": 0}, "more than 0"),
        ({"max_batch": 0}, "1 or more"),
        ({"compute_capabilities": ("86",)}, "look like 8.6"),
        ({"sizes": ((64, 64), (32, 32), (96, 96))}, "must grow"),
    ):
        with pytest.raises(RcdeployError, match=message):
            EngineOptions(**options)


@rtx
@pytest.mark.slow
def test_int8_is_what_its_parser_takes(small_model: Path, tmp_path: Path) -> None:
    """Symmetric Q/DQ without int32 biases."""
    options = ExportOptions(format="trt", precision="int8", image_count=1)
    export_package(ExportSource.open(small_model), tmp_path / "p", options, no_progress)
    assert check_graphs(tmp_path / "p")["unet"].startswith("accepted")
