"""Packages from strangers: each is refused with an RcdeployError; none hangs, allocates much or ends the process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.graph_checks import check_graph
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.package import Package, PackageFacts
from rcdeploy_runtime.tokenizer import PromptTokenizer


@pytest.fixture
def copy(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(package, tmp_path / "copy"))


def change_manifest(folder: Path, *path: str, value: Any) -> None:
    """Set the value at a path of keys, or remove the key (value ...)."""
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    target = data
    for key in path[:-1]:
        target = target[key]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    file.write_text(json.dumps(data))


def reseal(folder: Path) -> None:
    """Make the manifest agree with the files again, as an attacker would."""
    manifest = Manifest.read(folder, "package")
    manifest.files = {}
    manifest.add_files(folder)
    manifest.write(folder)


def change_json(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    reseal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "unet/model.onnx",
        "text_encoder/model.onnx",
        "vae_decoder/model.onnx",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_not_listed_is_not_opened(copy: Path, name: str, verify: bool) -> None:
    change_manifest(copy, "files", name, value=...)
    with pytest.raises(RcdeployError, match=f"its manifest lists no {name}"):
        TextToImage.load(copy, verify=verify)


def test_the_encoder_too_is_opened_by_the_manifest(copy: Path) -> None:
    change_manifest(copy, "files", "vae_encoder/model.onnx", value=...)
    model = TextToImage.load(copy, threads=1)
    with pytest.raises(RcdeployError, match="packed without the VAE's encoder"):
        model.generate("a bag", image=np.zeros((64, 64, 3), np.uint8), num_inference_steps=1)


@pytest.mark.parametrize("kind", ["fifo", "folder", "zero", "circle"])
def test_only_regular_files_are_opened(copy: Path, kind: str) -> None:
    file = copy / "unet/config.json"
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "zero" else file)
    with pytest.raises(RcdeployError, match=r"no regular file|points outside|no path below|is missing"):
        Package(copy)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_manifest_that_is_no_file(tmp_path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / "manifest.json")
    else:
        (tmp_path / "manifest.json").mkdir()
    with pytest.raises(RcdeployError):
        Package(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("files", "unet/model.onnx"), 5, "files.unet/model.onnx"),
        (("files", "unet/model.onnx", "size"), -1, "files.unet/model.onnx"),
        (("files", "unet/model.onnx", "size"), True, "files.unet/model.onnx"),
        (("files", "unet/model.onnx", "size"), "9", "files.unet/model.onnx"),
        (("files", "unet/model.onnx", "size"), 2**70, "more than"),
        (("files", "unet/model.onnx", "sha256"), None, "files.unet/model.onnx"),
        (("files",), [], "files: expected an object"),
        (("facts",), [], "facts: expected an object"),
        (("latents",), {}, "shape: missing"),
        (("latents", "scaling_factor"), float("nan"), "scaling_factor"),
        (("latents", "scaling_factor"), float("inf"), "scaling_factor"),
        (("latents", "scaling_factor"), 0, "scaling_factor"),
        (("latents", "scaling_factor"), -0.5, "scaling_factor"),
        (("latents", "scaling_factor"), "1", "scaling_factor: expected a number"),
        (("latents", "shape"), [4, 8], "shape: expected a list of 3"),
        (("latents", "shape"), [4, 0, 8], r"shape\[1\]: 0"),
        (("latents", "shape"), [4, 8, 10**9], r"shape\[2\]: 1000000000"),
        (("facts", "pixels_per_latent"), 0, "pixels_per_latent: 0"),
        (("facts", "pixels_per_latent"), ..., "pixels_per_latent: missing"),
        (("facts", "pixels_per_latent"), 8.5, "pixels_per_latent: expected a whole number"),
        (("facts", "size_multiple"), 0, "size_multiple: 0"),
        (("facts", "static_size"), [64], "static_size"),
        (("facts", "precision"), ["fp32"], "precision: expected an object"),
        (("facts", "latent_to_rgb"), [[float("nan")] * 3] * 5, "latent_to_rgb"),
        (("facts", "format"), ["onnx"], "format"),
        (("schema_version",), "1", "schema version"),
        (("schema_version",), True, "schema version"),
        (("kind",), ["package"], "no manifest of rcdeploy"),
    ],
)
def test_values_of_a_manifest(copy: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    change_manifest(copy, *path, value=value)
    with pytest.raises(RcdeployError, match=message):
        Package(copy)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5_000, '{"kind": "package", "x": ' + "9" * 5_000 + "}"]
)
def test_json_that_cannot_be_read(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(RcdeployError, match="is not JSON"):
        Package(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": -1},
        {"num_train_timesteps": "1000"},
        {"num_train_timesteps": True},
        {"beta_start": float("nan")},
        {"beta_end": float("inf")},
        {"beta_end": 2},
        {"beta_start": 0, "beta_end": 0},
        {"trained_betas": [0.1, float("nan")]},
        {"trained_betas": []},
        {"trained_betas": "all"},
        {"trained_betas": [1.5] * 10},
        {"steps_offset": 10**12},
        {"steps_offset": -5},
        {"prediction_type": ["epsilon"]},
        {"timestep_spacing": 5},
        {"clip_sample": "yes"},
        {"clip_sample_range": float("nan")},
        {"timestep_scaling": float("inf")},
        {"original_inference_steps": 0},
    ],
)
def test_noise_schedules(copy: Path, changes: dict[str, Any]) -> None:
    change_json(copy, "scheduler/scheduler_config.json", **changes)
    with pytest.raises(RcdeployError, match=r"scheduler_config\.json"):
        TextToImage.load(copy, threads=1)


@pytest.mark.parametrize("length", [10**9, 10**30, 0, -1, "16", 16.5, None, True])
def test_the_context_of_a_tokenizer_is_bounded(copy: Path, length: Any) -> None:
    change_json(copy, "tokenizer/tokenizer_config.json", model_max_length=length)
    with pytest.raises(RcdeployError, match="model_max_length"):
        TextToImage.load(copy, threads=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 100}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x"}] * 50}},
        {"normalizer": {"type": "Nonsense"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": {}},
        {"added_tokens": 5},
    ],
)
def test_tokenizers(copy: Path, changes: dict[str, Any]) -> None:
    change_json(copy, "tokenizer/tokenizer.json", **changes)
    with pytest.raises(RcdeployError, match="tokenizer"):
        TextToImage.load(copy, threads=1)


def test_a_panic_is_an_error(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    class Panicking:
        def encode_batch(self, prompts: list[str]) -> None:
            raise PanicException("index out of bounds")

    tokenizer = PromptTokenizer(copy / "tokenizer")
    monkeypatch.setattr(tokenizer, "_tokenizer", Panicking())
    with pytest.raises(RcdeployError, match="index out of bounds"):
        tokenizer(["a bag"])


def endless_loop() -> onnx.ModelProto:
    """A Loop of 2^62 turns."""
    value = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), value],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    count = helper.make_tensor("count", TensorProto.INT64, [], [2**62])
    nodes = [helper.make_node("Loop", ["count", ""], [], body=body)]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], [count]))


def test_graphs_with_control_flow_are_refused(copy: Path) -> None:
    (copy / "text_encoder/model.onnx").write_bytes(endless_loop().SerializeToString())
    reseal(copy)
    with pytest.raises(RcdeployError, match=r"text_encoder/model\.onnx has the operators Loop"):
        Package(copy)


@pytest.mark.parametrize(
    "layer", ["<layer id='1' type='Loop'>", '<layer type="&#84;ensorIterator">', "<layer type = 'If' >"]
)
def test_openvino_graphs_with_control_flow_are_refused(copy: Path, layer: str) -> None:
    (copy / "unet/openvino_model.xml").write_text(f"<net><layers>{layer}<data/></layer></layers></net>")
    reseal(copy)
    with pytest.raises(RcdeployError, match="control flow"):
        Package(copy)
    (copy / "unet/openvino_model.xml").write_text("<net")
    reseal(copy)
    with pytest.raises(RcdeployError, match="no OpenVINO model"):
        Package(copy)


def test_a_network_of_another_shape_is_named(copy: Path) -> None:
    """A text encoder in the UNet's place: the names of its inputs are others."""
    shutil.copyfile(copy / "text_encoder/model.onnx", copy / "unet/model.onnx")
    reseal(copy)
    model = TextToImage.load(copy, threads=1)
    with pytest.raises(RcdeployError, match="unet"):
        model.generate("a bag", num_inference_steps=1)
    model.networks.unet = lambda **inputs: inputs["sample"][..., :1]  # type: ignore[assignment]
    with pytest.raises(RcdeployError, match=r"the unet gave an array of shape \[2, 4, 8, 1\]"):
        model.generate("a bag", num_inference_steps=1)


def test_old_words_for_precisions_are_read() -> None:
    def precision(format: str, word: str) -> str:
        return PackageFacts(format, 8, 16, precision={"unet": word}).precision_of("unet")

    assert precision("onnx", "mixed") == precision("onnx", "int8-matmul") == "int8-matmul"
    assert precision("openvino", "mixed") == precision("openvino", "int8-weights") == "int8-weights"
    assert PackageFacts("onnx", 8, 16).precision_of("unet") == "fp32"


def test_a_graph_is_checked_without_reading_its_weights(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 MB of weights in the graph; less than one is read."""
    weights = onnx.numpy_helper.from_array(np.zeros(12_500_000, np.float32), "w")
    nodes = [helper.make_node("Identity", ["w"], [f"y{i}"]) for i in range(50)]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [weights]))
    (copy / "unet/model.onnx").write_bytes(model.SerializeToString())
    reseal(copy)
    package = Package(copy, verify=False)
    before = int(Path("/proc/self/io").read_text().split()[1]) if Path("/proc/self/io").exists() else 0
    check_graph(package.file("unet/model.onnx"), "unet/model.onnx", package.manifest.files)
    after = int(Path("/proc/self/io").read_text().split()[1]) if Path("/proc/self/io").exists() else 0
    assert after - before < 2**20
