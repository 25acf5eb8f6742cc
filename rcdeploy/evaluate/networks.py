"""The networks that pictures are shown to, behind one face: uint8 pictures and their prompts in, readings out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256

from .judge import Judge
from .scores import judge_readings

Name = Literal["inception", "clip", "judge", "vqa"]
READ_AT_ONCE = 32
"""pictures; always the same, because kernels round by the shape of a batch"""
PIPELINE = Path("en_core_web_sm")
"""spaCy's, by which T2I-CompBench finds noun phrases: a package's name here, or a folder"""


@dataclass(frozen=True)
class Network:
    """A network that reads pictures.

    path: where its weights lie. digest: of them (sha256). read: uint8 pictures [n, 3, h, w] and n prompts -> readings,
    each [n, ...] on the CPU: "features" and "logits" of Inception; "similarity" of CLIP; of a judge "features" and
    logits under "logits.ATTRIBUTE"; of vqa "yes". asks: what makes questions of prompts, for vqa.
    """

    name: Name
    path: Path
    digest: str
    read: Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
    judge: Judge | None = None
    asks: str = ""

    @property
    def key(self) -> str:
        """A name for what it has read: another network's readings are never taken for its own."""
        asks = f"-{hashlib.sha256(self.asks.encode()).hexdigest()[:8]}" if self.asks else ""
        return f"{self.name}-{self.digest[:8]}{asks}"

    @torch.inference_mode()
    def read_all(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """As `read`, in batches of READ_AT_ONCE."""
        starts = range(0, len(images), READ_AT_ONCE)
        parts = [self.read(images[i : i + READ_AT_ONCE], prompts[i : i + READ_AT_ONCE]) for i in starts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def open_network(
    name: Name, path: Path, device: torch.device | str = "cpu", *, noun_phrases: Path = PIPELINE
) -> Network:
    """noun_phrases: as PIPELINE, for vqa.

    Raises RcdeployError that says what is missing and where it comes from.
    """
    if name == "vqa":
        return _vqa(path, torch.device(device), noun_phrases)
    return {"inception": _inception, "clip": _clip, "judge": _judge}[name](path, torch.device(device))


def _inception(path: Path, device: torch.device) -> Network:
    from .inception import Inception

    network = Inception.load(path).to(device)

    def read(images: Tensor, _prompts: Sequence[str]) -> dict[str, Tensor]:
        features, logits = network(images.to(device))
        return {"features": features.cpu(), "logits": logits.cpu()}

    return Network("inception", path, sha256(path), read)


def _clip(path: Path, device: torch.device) -> Network:
    from .clip_score import ClipScore

    score = ClipScore(path, device)

    def read(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"similarity": score(images / 255, prompts, len(images)).cpu()}

    return Network("clip", path, _digest(path), read)


def _vqa(path: Path, device: torch.device, noun_phrases: Path) -> Network:
    from .vqa import NounPhrases, VqaScore

    find = NounPhrases(str(noun_phrases))
    score = VqaScore(path, device)

    def read(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"yes": score(images, [find(prompt) for prompt in prompts]).cpu()}

    return Network("vqa", path, _digest(path), read, asks=find.name)


def _judge(path: Path, device: torch.device) -> Network:
    if not (path / "config.json").is_file() or not (path / "model.safetensors").is_file():
        raise RcdeployError(
            f"{path} holds no judge: config.json and model.safetensors",
            fix="A judge stands beside a teacher whose prompts come from a grammar, as in examples/teachers/fashion; "
            "examples/train_teacher.py shows how one is trained.",
        )
    judge = Judge.load(path).to(device)

    def read(images: Tensor, _prompts: Sequence[str]) -> dict[str, Tensor]:
        features, logits = judge_readings(judge, images.to(device) / 255)
        return {"features": features, **{f"logits.{name}": value for name, value in logits.items()}}

    return Network("judge", path, _digest(path), read, judge)


def _digest(folder: Path) -> str:
    """Of a folder's config and weights; what else lies there (a judge's reference) does not change what it reads."""
    files = [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
