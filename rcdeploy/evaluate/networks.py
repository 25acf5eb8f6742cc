"""Feature extractors and scorers with one interface: uint8 images and their prompts in, output tensors out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256

from ..hub import local_folder
from ..judge_files import judge_digest, weights_digest
from .compbench_prompts import CompbenchPrompts
from .judge import Judge, judge_outputs
from .spec import NetworkName

BATCH_SIZE = 32
"""images; always the same, because kernels round by the shape of a batch"""
NOUN_PHRASE_PIPELINE = "en_core_web_sm"
"""the spaCy pipeline by which T2I-CompBench finds noun phrases"""


@dataclass(frozen=True)
class Network:
    """A network that computes something of images.

    Args:
        name: its kind. path: of its weights. digest: sha256 of them.
        forward: uint8 images [n, 3, h, w] and n prompts -> outputs, each [n, ...] on the CPU: "features" and "logits"
            of Inception; "similarity" of CLIP; of a judge "features" and logits under "logits.ATTRIBUTE"; "yes" of vqa;
            of compbench a score by category.
        judge: the module, for its attributes.
        questioner: name and version of what reads prompts, for vqa and compbench.
        parts: of compbench, path and digest of the networks that it is made of, by name.
    """

    name: NetworkName
    path: Path
    digest: str
    forward: Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
    judge: Judge | None = None
    questioner: str = ""
    parts: Mapping[str, Mapping[str, str]] | None = None

    @property
    def record(self) -> dict[str, Any]:
        """For scores.json: path and digest of what was used, and what read the prompts."""
        questioner = {"noun_phrases": self.questioner} if self.questioner else {}
        return {**(self.parts or {"path": str(self.path), "sha256": self.digest}), **questioner}

    @property
    def key(self) -> str:
        """A name for its stored outputs: those of another network are never taken for its own."""
        suffix = f"-{hashlib.sha256(self.questioner.encode()).hexdigest()[:8]}" if self.questioner else ""
        return f"{self.name}-{self.digest[:8]}{suffix}"

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """As `forward`, in batches of BATCH_SIZE."""
        starts = range(0, len(images), BATCH_SIZE)
        batches = [self.forward(images[i : i + BATCH_SIZE], prompts[i : i + BATCH_SIZE]) for i in starts]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def open_network(
    name: NetworkName, path: Path, device: torch.device | str = "cpu", *, noun_phrases: Path | None = None
) -> Network:
    """path: of the weights, or the name of a network on the hub, which is fetched. noun_phrases: name or folder of a
    spaCy pipeline, for vqa; by default NOUN_PHRASE_PIPELINE.

    Raises RcdeployError that says what is missing and where to get it.
    """
    if name == "vqa":
        return _vqa(path, torch.device(device), str(noun_phrases or NOUN_PHRASE_PIPELINE))
    return {"inception": _inception, "clip": _clip, "judge": _judge}[name](path, torch.device(device))


def _inception(path: Path, device: torch.device) -> Network:
    from .inception import Inception

    inception = Inception.load(path).to(device)

    def forward(images: Tensor, _prompts: Sequence[str]) -> dict[str, Tensor]:
        features, logits = inception(images.to(device))
        return {"features": features.cpu(), "logits": logits.cpu()}

    return Network("inception", path, sha256(path), forward)


def _load_clip(path: Path, device: torch.device) -> tuple[Path, Any]:
    """-> its folder, and images uint8 [n, 3, h, w] and n texts -> [n]."""
    from .clip_score import ClipScore, clip_folder

    folder = clip_folder(path)
    score = ClipScore(folder, device)
    return folder, lambda images, texts: score(images / 255, texts, len(images)).cpu()


def _load_vqa(path: Path, device: torch.device) -> tuple[Path, Any]:
    from .vqa import VqaScore

    folder = local_folder(path)
    return folder, VqaScore(folder, device)


def _load_detector(path: Path, device: torch.device) -> tuple[Path, Any]:
    from .detector import ZeroShotDetector

    folder = local_folder(path)
    return folder, ZeroShotDetector(folder, device)


def _clip(path: Path, device: torch.device) -> Network:
    folder, score = _load_clip(path, device)

    def forward(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"similarity": score(images, prompts)}

    return Network("clip", folder, weights_digest(folder), forward)


def _vqa(path: Path, device: torch.device, pipeline: str) -> Network:
    from .vqa import NounPhrases

    noun_phrases = NounPhrases(pipeline)
    folder, score = _load_vqa(path, device)

    def forward(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"yes": score(images, [noun_phrases(prompt) for prompt in prompts]).cpu()}

    return Network("vqa", folder, weights_digest(folder), forward, questioner=noun_phrases.name)


def open_compbench(
    paths: Mapping[NetworkName, Path],
    prompts: CompbenchPrompts,
    device: torch.device | str = "cpu",
    noun_phrases: Path | None = None,
) -> Network:
    """Scores prompts by their categories. paths: of vqa, clip and detector, as far as `prompts` need them.

    Raises RcdeployError as open_network.
    """
    from .compbench import Compbench
    from .vqa import NounPhrases

    phrases = NounPhrases(str(noun_phrases or NOUN_PHRASE_PIPELINE))
    load = {"vqa": _load_vqa, "clip": _load_clip, "detector": _load_detector}
    loaded = {name: load[name](path, torch.device(device)) for name, path in paths.items()}
    parts: dict[str, Mapping[str, str]] = {
        name: {"path": str(folder), "sha256": weights_digest(folder)} for name, (folder, _) in loaded.items()
    }
    digest = hashlib.sha256("".join(part["sha256"] for part in parts.values()).encode()).hexdigest()
    return Network(
        "compbench",
        next(iter(paths.values())),
        digest,
        Compbench(prompts, phrases, **{name: network for name, (_, network) in loaded.items()}),
        questioner=f"{phrases.name}, prompts {prompts.digest}",
        parts=parts,
    )


def _judge(path: Path, device: torch.device) -> Network:
    if not (path / "config.json").is_file() or not (path / "model.safetensors").is_file():
        raise RcdeployError(
            f"{path} holds no judge: config.json and model.safetensors",
            fix="A judge stands beside a teacher whose prompts come from a grammar, as in examples/teachers/fashion; "
            "examples/train_teacher.py shows how one is trained.",
        )
    judge = Judge.load(path).to(device)

    def forward(images: Tensor, _prompts: Sequence[str]) -> dict[str, Tensor]:
        features, logits = judge_outputs(judge, images.to(device) / 255)
        return {"features": features, **{f"logits.{name}": value for name, value in logits.items()}}

    return Network("judge", path, judge_digest(path), forward, judge)
