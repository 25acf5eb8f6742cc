"""Which files of a model folder are copied: known names, regular files, nothing through a link that leaves it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rcdeploy.model_files import copy_component, model_file
from rcdeploy_runtime.errors import RcdeployError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    vae = tmp_path / "model" / "vae"
    vae.mkdir(parents=True)
    for name in ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "notes.txt"):
        (vae / name).write_text(name)
    return tmp_path / "model"


def test_known_names_are_copied_and_nothing_else(model: Path, tmp_path: Path) -> None:
    copy_component(model, "vae", tmp_path / "copy")
    names = sorted(file.name for file in (tmp_path / "copy").iterdir())
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_an_unknown_name_that_links_elsewhere_is_ignored(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / "vae" / "key.txt").symlink_to(tmp_path / "secret")
    (model / "vae" / "zero").symlink_to("/dev/zero")
    copy_component(model, "vae", tmp_path / "copy")
    assert not (tmp_path / "copy" / "key.txt").exists() and not (tmp_path / "copy" / "zero").exists()


@pytest.mark.parametrize("target", ["secret", "/dev/zero"])
def test_a_known_name_that_links_elsewhere_is_refused(model: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / "vae" / "config.json").unlink()
    (model / "vae" / "config.json").symlink_to(target if target.startswith("/") else tmp_path / target)
    with pytest.raises(RcdeployError, match="outside the model's folder"):
        copy_component(model, "vae", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_linked_component_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (model / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RcdeployError, match="outside the model's folder"):
        copy_component(model, "unet", tmp_path / "copy")


def test_a_pipe_is_refused(model: Path, tmp_path: Path) -> None:
    os.mkfifo(model / "vae" / "merges.txt")
    with pytest.raises(RcdeployError, match="not a regular file"):
        copy_component(model, "vae", tmp_path / "copy")


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    (snapshot / "vae").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "vae" / "config.json").symlink_to("../../../blobs/abc")
    assert model_file(snapshot, "vae/config.json").read_text() == "{}"
    copy_component(snapshot, "vae", tmp_path / "copy")
    assert not (tmp_path / "copy" / "config.json").is_symlink()
