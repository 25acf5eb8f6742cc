"""The shipped recipe of SD-1.4's smallest student, end to end, with a toy teacher in SD-1.4's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.prompts.pool import PromptPool

RECIPE = Path(__file__).parent.parent / "recipes" / "c_micro.toml"
SMALL = {
    "prompts.per_noun": 1,
    "prompts.paired_count": 8,
    "cache.num_inference_steps": 1,
    "cache.resolution": 64,
    "cache.batch_size": 4,
    "train.max_steps": 3,
    "train.global_batch_size": 4,
    "train.micro_batch_size": 4,
    "train.mixed_precision": '"no"',
    "train.checkpoint_every": 2,
    "evaluate.every": 0,
    "evaluate.num_inference_steps": 1,
    "evaluate.validation_size": 4,
}


def test_c_micro_needs_the_teachers_weights_alone(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcdeploy.prompts.wordnet.FILES", ("nobody has this", "index.noun"))  # none is installed
    overrides = {"teacher.path": f'"{tiny_teacher}"', **SMALL}
    command = ["distill", str(RECIPE), "--json", "--quiet"]
    command += [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    run = tmp_path / "runs" / "c_micro"
    assert (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    student = json.loads((run / "pipeline" / "unet" / "config.json").read_text())
    assert student["block_out_channels"] == [4, 4, 8, 8]  # half of the teacher's
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 3
    (folder,) = (path for path in (tmp_path / "pools").iterdir() if path.is_dir())
    with PromptPool.open(folder) as pool:
        assert len(pool) == 25_992 and any("teapot" in prompt for prompt in pool)
