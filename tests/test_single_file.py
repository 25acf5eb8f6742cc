"""The original layout, read back by diffusers, which maps its keys in the other direction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import save_teacher
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.student.build import build_student
from rcdeploy.student.spec import student_config
from rcdeploy_export.single_file import write_single_file
from rcdeploy_runtime.errors import RcdeployError


def check_same_weights(loaded: torch.nn.Module, expected: torch.nn.Module) -> None:
    a = loaded.state_dict()
    b = expected.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("student", [None, "c-micro", "b-base"])
def test_diffusers_reads_it_back(student: str | None, tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "model")
    if student:
        config, _ = student_config(student, dict(LatentDiffusionModel(str(folder)).unet_config))
        build_student(config, 0).save_pretrained(folder / "unet")
    model = LatentDiffusionModel(str(folder))
    file = tmp_path / "model.safetensors"
    write_single_file(model, file)
    check_same_weights(
        UNet2DConditionModel.from_single_file(str(file), config=str(folder), subfolder="unet"), model.unet
    )
    check_same_weights(AutoencoderKL.from_single_file(str(file), config=str(folder), subfolder="vae"), model.vae)
    text_keys = {k for k in load_file(file) if k.startswith("cond_stage_model.transformer.text_model.")}
    assert len(text_keys) == len(load_file(folder / "text_encoder/model.safetensors"))


def test_command(tiny_teacher: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tiny_teacher), "--format", "single-file"])
    assert result.exit_code == 0 and (tmp_path / "packages/tiny.safetensors").is_file()


def test_stages_of_different_layers_are_refused(tmp_path: Path) -> None:
    """diffusers, the one reader, divides by layers_per_block."""
    model = LatentDiffusionModel(str(save_teacher(tmp_path / "model", layers_per_block=[2, 1, 1, 2])))
    with pytest.raises(RcdeployError, match="stages have 2/1/1/2 layers"):
        write_single_file(model, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_unet_that_takes_the_guidance_scale_is_refused(tmp_path: Path) -> None:
    model = LatentDiffusionModel(str(save_teacher(tmp_path / "model", time_cond_proj_dim=8)))
    with pytest.raises(RcdeployError, match="takes the guidance scale as an input"):
        write_single_file(model, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
