"""Where the judge of a model is: a small classifier in the folder judge/ of a diffusers folder. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rcdeploy_runtime.files import sha256

JUDGE_FOLDER = "judge"
JUDGE_FILES = ("config.json", "model.safetensors", "reference.safetensors", "accuracy.json")
"""the network, its statistics of real images for Frechet distances, and how often it is right on those"""


def judge_of(model_folder: Path) -> Path | None:
    """The judge that a diffusers folder (most often a teacher) carries; None where it has none."""
    folder = model_folder / JUDGE_FOLDER
    return folder if (folder / "config.json").is_file() else None


def judge_digest(folder: Path) -> str:
    """sha256 of a judge's config and weights; its reference statistics and accuracies do not change its outputs."""
    return weights_digest(folder)


def weights_digest(folder: Path) -> str:
    """sha256 of the config and the weights of one network in a folder."""
    files = [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]
    return hashlib.sha256("".join(sha256(file) for file in files if file.is_file()).encode()).hexdigest()
