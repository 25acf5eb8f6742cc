"""Programs for phones: refusals, and missing libraries. The exports themselves: test_executorch.py, test_coreml.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import listing
from typer.testing import CliRunner

from rcdeploy.bench.latency import Settings, bench
from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from rcdeploy.progress import no_progress
from rcdeploy.report.card import write_card
from rcdeploy_export.components import components
from rcdeploy_export.coreml_package import with_coreml_names
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.fixed_shape import signature, with_plain_attention
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, write_json

run = CliRunner().invoke


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "executorch", "precision": "fp16"}, "XNNPACK computes in fp32 or int8"),
        ({"format": "executorch", "vae_precision": "fp16"}, "'fp16' is none of fp32"),
        ({"format": "coreml", "precision": "int8"}, "take --format executorch"),
        ({"format": "executorch", "opset": 20}, "--opset and --external-data are of ONNX graphs"),
        ({"format": "coreml", "external_data": True}, "--opset and --external-data are of ONNX graphs"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RcdeployError, match=message):
        ExportOptions(**options)


def test_their_shapes_are_fixed() -> None:
    options = ExportOptions(format="executorch", image_size=(64, 64))
    assert options.fixed_shapes and options.resolved_opset is None and options.runs_here
    assert not ExportOptions(format="coreml").runs_here


@pytest.mark.parametrize(("format", "library"), [("executorch", "executorch"), ("coreml", "coremltools")])
def test_a_missing_library_is_named_and_the_package_that_was_there_stays(
    format: str, library: str, small_model: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(package, tmp_path / "p")
    before = listing(tmp_path / "p")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == library else found(name, *rest)
    )
    error = run(app, ["export", str(small_model), "-o", str(tmp_path / "p"), "--format", format]).exception
    assert isinstance(error, RcdeployError) and error.message == f"{library} is not installed"
    assert error.fix and f"rcdeploy[{format}]" in error.fix
    assert listing(tmp_path / "p") == before


def of_format(package: Path, folder: Path, format: str, network: str) -> Path:
    """The package with other networks' names in the place of its own: nothing opens them before the error."""
    shutil.copytree(package, folder)
    manifest = read_json(folder / "manifest.json")
    manifest["facts"]["format"] = format
    for component in ("text_encoder", "unet", "vae_decoder"):
        entry = manifest["files"].pop(f"{component}/model.onnx")
        (folder / component / "model.onnx").rename(folder / component / network)
        (folder / component / "signature.json").write_text("{}")
        manifest["files"][f"{component}/{network}"] = entry
        manifest["files"][f"{component}/signature.json"] = {"size": 2, "sha256": SHA_OF_BRACES}
    write_json(folder / "manifest.json", manifest)
    return folder


SHA_OF_BRACES = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_core_ml_package_names_what_opens_it(package: Path, tmp_path: Path) -> None:
    folder = of_format(package, tmp_path / "p", "coreml", "model.mlpackage")
    with pytest.raises(RcdeployError, match="apps on iOS and macOS open it") as caught:
        TextToImage.load(folder)
    assert caught.value.fix and "--format onnx" in caught.value.fix


def test_an_executorch_package_names_what_opens_it(package: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("executorch"):
        pytest.skip("ExecuTorch is installed")
    folder = of_format(package, tmp_path / "p", "executorch", "model.pte")
    with pytest.raises(RcdeployError, match="apps on Android and iOS open it") as caught:
        TextToImage.load(folder)
    assert caught.value.fix and "rcdeploy[executorch]" in caught.value.fix


@pytest.mark.parametrize(("format", "title"), [("executorch", "ExecuTorch programs"), ("coreml", "Core ML models")])
def test_their_card_names_apps(package: Path, tmp_path: Path, format: str, title: str) -> None:
    folder = of_format(package, tmp_path / "p", format, "model.pte")
    card = write_card(folder).read_text()
    assert f"a package of {title}, for phones" in card and "examples/embed" in card
    assert "```python" not in card and "takes these by default" not in card


def test_bench_counts_an_executorch_package(package: Path, tmp_path: Path) -> None:
    folder = of_format(package, tmp_path / "p", "executorch", "model.pte")
    model = describe_model(resolve(folder))
    assert model.backends == ("executorch",)
    counted = bench([model], Settings(time=False), no_progress)["subjects"][0]
    assert counted["components"]["unet"]["macs"] > 0


def test_plain_attention_computes_the_same_and_leaves_the_model_alone(small_model: Path) -> None:
    model = LatentDiffusionModel(str(small_model))
    for component in components(model, encoder=False):
        before = [type(part.processor) for part in component.module.modules() if hasattr(part, "processor")]
        inputs = component.example_inputs(2, 8, 8)
        with torch.no_grad():
            expected, plain = component.module(*inputs), with_plain_attention(component.module)(*inputs)
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, plain)), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert before == [type(part.processor) for part in component.module.modules() if hasattr(part, "processor")]


def test_core_ml_has_names_without_dots() -> None:
    model = LatentDiffusionModel(str(Path(__file__).parent.parent / "examples/teachers/fashion_xl"))
    text, second, unet, *_ = map(with_coreml_names, components(model, encoder=False))
    assert text.outputs[:3] == ("last_hidden_state", "pooler_output", "hidden_states_0")
    assert second.compared == ("hidden_states_2", "text_embeds") and set(second.compared) < set(second.outputs)
    assert unet.outputs == ("out_sample",) == unet.compared_outputs


def test_the_signature_has_names_types_and_shapes_in_order(small_model: Path) -> None:
    text, unet, *_ = components(LatentDiffusionModel(str(small_model)))
    described = signature(unet, (1, 8, 8), unet.example_inputs(1, 8, 8))
    assert json.loads(json.dumps(described)) == {
        "inputs": {
            "sample": {"type": "float", "shape": [1, 4, 8, 8]},
            "timestep": {"type": "int64", "shape": []},
            "encoder_hidden_states": {"type": "float", "shape": [1, 16, 16]},
        },
        "outputs": {"out_sample": {"type": "float", "shape": [1, 4, 8, 8]}},
    }
    assert list(signature(text, (1, 8, 8), text.example_inputs(1, 8, 8))["outputs"]) == [
        "last_hidden_state",
        "pooler_output",
    ]
