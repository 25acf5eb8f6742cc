"""A SLIM student as a package: parity with torch, and images of the runtime, which knows nothing of wavelets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import save_teacher, unet_config
from diffusers import StableDiffusionPipeline

from rcdeploy.bench.macs import unet_macs
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from rcdeploy.progress import no_progress
from rcdeploy.student.build import build_student, load_unet
from rcdeploy.student.spec import student_config
from rcdeploy_export.components import components
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.onnx_graph import export_onnx
from rcdeploy_export.openvino_ir import to_openvino
from rcdeploy_export.package import export_package
from rcdeploy_export.parity import compare
from rcdeploy_export.single_file import write_single_file
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.onnx_session import OnnxSession
from rcdeploy_runtime.openvino_session import OpenVinoSession

TWO_STAGES = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
}


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages: an export takes time for every node of the graph."""
    folder = save_teacher(tmp_path_factory.mktemp("model") / "slim", **TWO_STAGES)
    build_student(student_config("slim-b-base", unet_config(**TWO_STAGES))[0], 0).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def slim_package(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "slim"
    export_package(ExportSource.open(slim), folder, ExportOptions(encoder=False), no_progress)
    return folder


def image_of(package: Path) -> np.ndarray:
    images, _ = TextToImage.load(package, threads=1).generate("a red shirt", seed=5, guidance_scale=4.0)
    return np.asarray(images[0], int)


def test_the_package_generates_what_torch_generates(slim: Path, slim_package: Path) -> None:
    """25 guided steps from the same noise, to one grey level."""
    parity = {p["component"]: p["relative_error"] for p in Manifest.read(slim_package, "package").facts["parity"]}
    assert 0 < parity["unet"] < 1e-5
    noise = np.random.Generator(np.random.Philox(key=5)).standard_normal((1, 4, 8, 8), np.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(slim, unet=load_unet(slim / "unet"))
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise)
    expected = pipeline("a red shirt", latents=latents, guidance_scale=4.0, num_inference_steps=25).images[0]
    assert np.abs(image_of(slim_package) - np.asarray(expected, int)).max() <= 1


def test_transforms_are_convolutions_of_the_standard(slim_package: Path) -> None:
    graph = onnx.load(slim_package / "unet/model.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("ConvTranspose") == 1 and operators.count("Sigmoid") > 2
    assert {node.domain for node in graph.node} == {""}
    description = describe_model(resolve(str(slim_package)))
    assert unet_macs(description.configs["unet"]).total > 0  # a package's config says what to count


@pytest.mark.slow
def test_onnx_and_openvino_agree_with_torch_at_any_size(slim: Path, tmp_path: Path) -> None:
    unet = components(LatentDiffusionModel(str(slim)))[1]
    export_onnx(unet, tmp_path / "unet.onnx", opset=20)
    (tmp_path / "ir").mkdir()
    to_openvino(tmp_path / "unet.onnx", tmp_path / "ir", "fp32", [], lambda _: None)
    sizes = [(1, 8, 8), (2, 8, 16), (3, 6, 10)]
    for session in (OnnxSession(tmp_path / "unet.onnx", "cpu"), OpenVinoSession(tmp_path / "ir", threads=1)):
        assert 0 < compare(unet, session, sizes, "fp32").relative_error < 1e-4


@pytest.mark.slow
def test_all_stages_export(tmp_path: Path) -> None:
    save_teacher(tmp_path / "slim")
    build_student(student_config("slim-b-base", unet_config())[0], 0).save_pretrained(tmp_path / "slim/unet")
    unet = components(LatentDiffusionModel(str(tmp_path / "slim")))[1]
    export_onnx(unet, tmp_path / "unet.onnx", opset=20)
    parity = compare(unet, OnnxSession(tmp_path / "unet.onnx", "cpu"), [(1, 8, 8), (2, 8, 16), (3, 24, 16)], "fp32")
    assert parity.relative_error < 1e-5


def test_a_single_file_has_no_place_for_it(slim: Path, tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="wavelet gating, for which single files have no layout"):
        write_single_file(LatentDiffusionModel(str(slim)), tmp_path / "slim.safetensors")
    assert not (tmp_path / "slim.safetensors").exists()
