"""rcdeploy import: single-file checkpoints as they are shared, to diffusers folders; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import listing
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rcdeploy import checkpoint_import
from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy_export.single_file import write_single_file
from rcdeploy_runtime.errors import RcdeployError

run = CliRunner().invoke


@pytest.fixture
def checkpoint(small_model: Path, tmp_path: Path) -> Path:
    """The small model in one file, in half precision, beside something that trainers leave in such files."""
    write_single_file(LatentDiffusionModel(str(small_model)), tmp_path / "fine.safetensors")
    tensors = {k: v.half() for k, v in load_file(tmp_path / "fine.safetensors").items()}
    save_file({**tensors, "model_ema.decay": torch.ones(1)}, tmp_path / "fine.safetensors")
    return tmp_path / "fine.safetensors"


def check_same_weights(folder: Path, expected: Path) -> None:
    a = LatentDiffusionModel(str(folder))
    b = LatentDiffusionModel(str(expected))
    for name in ("unet", "vae", "text_encoder"):
        loaded = getattr(a, name).state_dict()
        for key, value in getattr(b, name).state_dict().items():
            assert torch.equal(loaded[key], value.half().float()), (name, key)
    assert a.tokenizer("a red shirt").input_ids == b.tokenizer("a red shirt").input_ids
    assert a.schedule.config.beta_end == b.schedule.config.beta_end


def test_configs_of_another_folder(checkpoint: Path, small_model: Path, tmp_path: Path) -> None:
    shutil.copytree(small_model, tmp_path / "layout", ignore=shutil.ignore_patterns("*.safetensors"))
    result = run(app, ["import", "fine.safetensors", "--config", "layout", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"folder": "models/fine"}
    check_same_weights(tmp_path / "models/fine", small_model)


def test_built_in_configs(checkpoint: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SD-1.x's own, here those of the small model, and a folder with a tokenizer."""
    configs: dict[str, Any] = {
        name: json.loads((small_model / name / "config.json").read_text()) for name in ("unet", "vae", "text_encoder")
    }
    monkeypatch.setattr(checkpoint_import, "SD14_CONFIGS", configs)
    result = run(app, ["import", "fine.safetensors", "--out", "f", "--tokenizer", str(small_model / "tokenizer")])
    assert result.exit_code == 0, result.output
    check_same_weights(tmp_path / "f", small_model)
    assert (tmp_path / "f/unet/diffusion_pytorch_model.safetensors").stat().st_size < 0.6 * (
        small_model / "unet/diffusion_pytorch_model.safetensors"
    ).stat().st_size


def test_bad_input_is_refused(checkpoint: Path, small_model: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"x")
    (tmp_path / "text.safetensors").write_text("not weights")
    save_file({"lora_up": torch.ones(2)}, tmp_path / "lora.safetensors")
    shutil.copyfile(small_model / "unet/diffusion_pytorch_model.safetensors", tmp_path / "unet.safetensors")
    lacking = {k: v for k, v in load_file(checkpoint).items() if not k.startswith("first_stage_model.decoder.conv_out")}
    save_file(lacking, tmp_path / "lacking.safetensors")
    (tmp_path / "empty").mkdir()
    config = ["--config", str(small_model)]
    before = listing(tmp_path)
    for arguments, message in (
        (["gone.safetensors"], "No such file"),
        (["x.ckpt"], "pickled"),
        (["text.safetensors"], "not a safetensors file"),
        (["lora.safetensors"], "no UNet in the layout"),
        (["unet.safetensors"], "in diffusers' layout"),
        (["fine.safetensors"], "is not SD-1.x"),
        (["fine.safetensors", "--config", "empty"], "is missing"),
        (["fine.safetensors", *config, "--tokenizer", "empty"], "holds no tokenizer"),
        (["fine.safetensors", *config, "--out", "empty"], "exists"),
        (["fine.safetensors", "--config", str(tiny_teacher)], "does not fit the configs"),
        (["lacking.safetensors", *config], "lacks tensors"),
    ):
        result = run(app, ["import", *arguments])
        error = result.exception
        assert isinstance(error, RcdeployError) and message in f"{error}", (arguments, result.output, error)
        assert listing(tmp_path) == before


def test_a_checkpoint_as_a_teacher_says_how_to_import_it(checkpoint: Path, recipe_file: Any, tmp_path: Path) -> None:
    recipe = recipe_file(teacher={"path": str(checkpoint)})
    for arguments in (["recipes", "check", str(recipe)], ["export", "fine.safetensors"]):
        result = run(app, arguments)
        error = f"{result.exception}"
        assert isinstance(result.exception, RcdeployError), result.output
        assert "is a single-file checkpoint" in error and "--tokenizer clip" in error, error
