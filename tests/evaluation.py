"""What the tests of rcdeploy evaluate share: a judged teacher, the command's JSON, an image set's bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from conftest import THINGS, tokenizer
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.evaluate.frechet import Statistics
from rcdeploy.evaluate.judge import Judge

ATTRIBUTES: dict[str, dict[str, list[str] | str]] = {
    "item": {"labels": list(THINGS), "pattern": f"({'|'.join(THINGS)})"},
    "colour": {"labels": ["red", "blue"], "pattern": "(red|blue)"},
}
FAST = ["--steps", "2", "--device", "cpu"]


def save_judge(folder: Path, attributes: Any = None) -> Path:
    """A judge of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Judge(attributes or ATTRIBUTES, width=4).eval().save(folder)
    return folder


def with_judge(teacher: Path, folder: Path) -> Path:
    """A copy of the teacher with a judge of random weights and reference statistics for it."""
    shutil.copytree(teacher, folder)
    save_judge(folder / "judge")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Statistics.of(torch.rand(40, 16)).save(folder / "judge" / "reference.safetensors")
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP model of random weights, with its tokenizer."""
    words = tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": words.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                text_config={**small, **text},
                vision_config={**small, "image_size": 32, "patch_size": 8},
                projection_dim=8,
            )
        )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def evaluate(*arguments: Any) -> dict[str, Any]:
    """The JSON of rcdeploy evaluate; its exceptions are raised here."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), *FAST, "--json"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def shard_bytes(folder: str | Path, prefix: str = "*") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob(f"{prefix}-*.safetensors"))}
