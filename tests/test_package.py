"""A package is data: what is damaged, foreign or hostile is named and refused."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from rcdeploy_runtime import digests
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.onnx_file import read_onnx
from rcdeploy_runtime.package import Package


@pytest.fixture
def copy(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(package, tmp_path / "copy"))


def reseal(folder: Path, **facts: object) -> None:
    """Makes the manifest agree with the files again, as an attacker would."""
    manifest = Manifest.read(folder, "package")
    manifest.files = {}
    manifest.facts |= facts
    manifest.add_files(folder)
    manifest.write(folder)


def test_one_changed_byte_is_found(copy: Path) -> None:
    Package(copy)
    file = copy / "unet/model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(RcdeployError, match="contents of unet/model.onnx"):
        Package(copy)
    Package(copy, verify=False)  # the user's choice: sizes are still compared


def test_digests_are_remembered(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Package(copy)
    monkeypatch.setattr(digests, "sha256", lambda _: pytest.fail("read again"))
    Package(copy)


@pytest.mark.parametrize("verify", [True, False])
def test_truncated_and_missing_files_are_named(copy: Path, verify: bool) -> None:
    os.truncate(copy / "vae_decoder/model.onnx", 100)
    with pytest.raises(RcdeployError, match="vae_decoder/model.onnx has 100 bytes"):
        Package(copy, verify=verify)
    (copy / "vae_decoder/model.onnx").unlink()
    with pytest.raises(RcdeployError, match="vae_decoder/model.onnx is missing"):
        Package(copy, verify=verify)


def test_foreign_and_newer_ones(copy: Path, small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="diffusers or Optimum folder"):
        Package(small_model)
    with pytest.raises(RcdeployError, match="nothing is there"):
        Package(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(RcdeployError, match="not a zip archive"):
        Package(tmp_path / "text")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(RcdeployError, match="schema version 99"):
        Package(copy)
    for name, message in (("coreml", "is a Core ML package"), ("tflite", "format 'tflite'")):
        (copy / "manifest.json").write_text(json.dumps({**manifest, "facts": {**manifest["facts"], "format": name}}))
        with pytest.raises(RcdeployError, match=message):
            Package(copy)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "unet/../../secret"])
def test_paths_cannot_leave_the_folder(copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("s")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "size": 1}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RcdeployError, match="points outside"):
        Package(copy)


def test_links_cannot_leave_the_folder(copy: Path, tmp_path: Path) -> None:
    (copy / "unet/config.json").replace(tmp_path / "config.json")
    (copy / "unet/config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(RcdeployError, match="points outside"):
        Package(copy)


@pytest.mark.parametrize("location", ["../../secret.data", "/etc/hostname", "unlisted.data"])
def test_external_data_stays_inside_and_is_listed(copy: Path, tmp_path: Path, location: str) -> None:
    """A sealed package whose graph reads its weights from elsewhere."""
    model = onnx.load(copy / "unet/model.onnx")
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (copy / "unet/model.onnx").write_bytes(model.SerializeToString())
    reseal(copy)
    with pytest.raises(RcdeployError, match="points outside|not in the package"):
        Package(copy)


def test_external_files_are_found_wherever_tensors_stand(tmp_path: Path) -> None:
    def tensor(name: str, location: str) -> onnx.TensorProto:
        made = onnx.numpy_helper.from_array(np.zeros(2, np.float32), name)
        onnx.external_data_helper.set_external_data(made, location)
        made.ClearField("raw_data")
        return made

    inner = onnx.helper.make_graph([], "inner", [], [], [tensor("a", "inner.data")])
    nodes = [
        onnx.helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner),
        onnx.helper.make_node("Constant", [], ["k"], value=tensor("b", "attribute.data")),
    ]
    graph = onnx.helper.make_graph(nodes, "outer", [], [], [tensor("w", "outer.data")])
    sparse = onnx.SparseTensorProto(values=tensor("v", "sparse.data"), dims=[2])
    graph.sparse_initializer.append(sparse)
    function = onnx.helper.make_function(
        "f", "g", [], [], [onnx.helper.make_node("Constant", [], ["q"], value=tensor("d", "function.data"))], []
    )
    model = onnx.helper.make_model(graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert read_onnx(tmp_path / "m.onnx").external_files == {
        "inner.data",
        "attribute.data",
        "outer.data",
        "sparse.data",
        "function.data",
    }


@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x07ab", b"hello, world"])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(RcdeployError, match="no ONNX model"):
        read_onnx(tmp_path / "m.onnx")


def zipped(folder: Path, archive: Path, prefix: str = "", **replaced: bytes) -> Path:
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                packed.writestr(prefix + name, replaced.get(name, file.read_bytes()))
    return archive


def test_an_archive_is_unpacked_by_its_manifest_alone(copy: Path, tmp_path: Path) -> None:
    (copy / "extra.sh").write_text("echo")
    archive = zipped(copy, tmp_path / "p.zip", prefix="p/")
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("p/../../escaped.txt", "x")
    opened = Package(archive)
    assert not (opened.folder / "extra.sh").exists() and not list(tmp_path.parent.glob("escaped*"))
    folder = opened.folder
    del opened
    assert not folder.exists()


def test_an_archive_cannot_grow(copy: Path, tmp_path: Path) -> None:
    """A member that unpacks to more than the manifest says stops there."""
    archive = zipped(copy, tmp_path / "p.zip", **{"unet/config.json": b" " * 50_000_000})
    with pytest.raises(RcdeployError, match="larger than its manifest says"):
        Package(archive)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["unet/model.onnx"]["size"] = 2**50
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RcdeployError, match="would unpack to more"):
        Package(zipped(copy, tmp_path / "q.zip"))


def test_broken_archives(copy: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as packed:
        packed.writestr("readme.txt", "hello")
    with pytest.raises(RcdeployError, match="it has no manifest.json"):
        Package(tmp_path / "empty.zip")
    (copy / "unet/model.onnx").unlink()
    with pytest.raises(RcdeployError, match="unet/model.onnx is missing"):
        Package(zipped(copy, tmp_path / "short.zip"))
