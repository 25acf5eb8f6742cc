"""The judge: a small classifier of the attributes that prompts name, and the scores computed from its outputs.

It stands beside a teacher whose prompts come from a grammar (examples/teachers/fashion/judge) and serves three metrics:
accuracy per attribute, a Frechet distance of its features, an inception score of its class probabilities.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

from ..prompts.patterns import search_each
from ..storage.tensors import load_tensors
from .frechet import Statistics, frechet_distance, inception_score

Attributes = dict[str, dict[str, list[str] | str]]
"""name -> {"labels": the classes, "pattern": a regular expression whose group 1 is the label in a prompt}"""
BATCH_SIZE = 256
MAX_ATTRIBUTES, MAX_LABELS, MAX_WIDTH, MAX_PATTERN = 64, 10_000, 1_024, 100_000
"""of a judge that is loaded; MAX_PATTERN in characters"""


class Judge(nn.Module):
    """Convolutions down to one feature vector, then one linear head per attribute.

    attributes: the classes of each, and how their labels are found in a prompt.
    width: channels of the first stage; features have 4 x width entries.
    """

    def __init__(self, attributes: Attributes, width: int = 32) -> None:
        super().__init__()
        self.attributes, self.width = attributes, width
        stages: list[nn.Module] = []
        # (channels in and out, kernel, stride): three times half the resolution
        for c_in, c_out, kernel, stride in (
            (3, width, 5, 2),
            (width, 2 * width, 3, 2),
            (2 * width, 2 * width, 3, 1),
            (2 * width, 3 * width, 3, 2),
            (3 * width, 4 * width, 3, 1),
            (4 * width, 4 * width, 3, 1),
        ):
            convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
            stages += [convolution, nn.BatchNorm2d(c_out), nn.ReLU()]
        self.trunk = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(4 * width, len(a["labels"])) for name, a in attributes.items()})

    def features(self, images: Tensor) -> Tensor:
        """images [n, 3, h, w] in [0, 1] -> features [n, 4 x width]."""
        return self.trunk(images * 2 - 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images [n, 3, h, w] in [0, 1] -> logits per attribute, each [n, number of labels]."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    def labels(self, prompt: str) -> dict[str, int]:
        """The label index of every attribute that the prompt names; a match that is no label names nothing."""
        indices = {}
        for name, attribute in self.attributes.items():
            match = re.search(str(attribute["pattern"]), prompt)
            if match and match.group(1) in attribute["labels"]:
                indices[name] = list(attribute["labels"]).index(match.group(1))
        return indices

    def label_tensors(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """n prompts -> per attribute n label indices, -1 where the prompt does not name it.

        Raises RcdeployError when the patterns take seconds for one prompt (prompts.patterns).
        """
        labels = search_each(self.labels, prompts, [str(a["pattern"]) for a in self.attributes.values()])
        return {name: torch.tensor([x.get(name, -1) for x in labels]) for name in self.attributes}

    @torch.inference_mode()
    def verdicts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """images [n, 3, h, w] in [0, 1] and their n prompts -> per attribute n booleans: the image shows the label."""
        logits = self(images)
        return {name: logits[name].argmax(1) == labels for name, labels in self.label_tensors(prompts).items()}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = {"attributes": self.attributes, "width": self.width}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(half, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Raises RcdeployError for a config that describes no judge, and for weights that are not of that config."""
        config = read_json(folder / "config.json")
        if problem := _problem_of(config):
            raise RcdeployError(f"{folder}/config.json describes no judge: {problem}")
        with torch.device("meta"):  # no memory before the file's tensors have the shapes of the config
            judge = cls(config["attributes"], config["width"])
        weights = load_tensors(folder / "model.safetensors")
        shapes = {name: tensor.shape for name, tensor in judge.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in weights.items()}:
            raise RcdeployError(f"{folder}/model.safetensors is not the judge that its config.json describes")
        weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        judge.load_state_dict(weights, assign=True)
        return judge.eval().requires_grad_(False)


def _problem_of(config: Any) -> str | None:
    """Why a judge's config.json cannot be one; None when it can."""
    attributes, width = (config.get("attributes"), config.get("width")) if isinstance(config, dict) else (None, None)
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= MAX_WIDTH:
        return f"width is not a whole number from 1 to {MAX_WIDTH}"
    if not isinstance(attributes, dict) or not 1 <= len(attributes) <= MAX_ATTRIBUTES:
        return f"attributes are not 1 to {MAX_ATTRIBUTES} named ones"
    problems = (f"attribute {name!r}: {why}" for name, a in attributes.items() if (why := _attribute_problem(name, a)))
    return next(problems, None)


def _attribute_problem(name: str, attribute: Any) -> str | None:
    if not name.isidentifier():
        return "its name is no identifier"
    labels, pattern = (attribute.get("labels"), attribute.get("pattern")) if isinstance(attribute, dict) else (0, 0)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return "labels are not a list of texts"
    if not 1 <= len(set(labels)) == len(labels) <= MAX_LABELS:
        return f"labels are not 1 to {MAX_LABELS:,} different ones"
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        return f"pattern is not a text of at most {MAX_PATTERN:,} characters"
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        return f"pattern is no regular expression: {error}"
    return None if groups else "pattern has no group"


@torch.inference_mode()
def judge_outputs(judge: Judge, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """images [n, 3, h, w] in [0, 1] -> features [n, d] and, per attribute, logits [n, number of labels]; fp32, CPU."""
    device = next(judge.parameters()).device
    features = [judge.features(batch.to(device).float()) for batch in images.split(BATCH_SIZE)]
    logits = {name: torch.cat([head(batch) for batch in features]).cpu() for name, head in judge.heads.items()}
    return torch.cat(features).cpu(), logits


def judge_scores(
    judge: Judge, images: Tensor, prompts: Sequence[str], reference: Statistics | None = None
) -> dict[str, float]:
    """Scores of images [n, 3, h, w] in [0, 1] that were generated for n prompts.

    Per attribute, and for "all" (every attribute that a prompt names is right): the fraction of right images among
    those whose prompt names it; left out when no prompt does. "inception_score": of the probabilities of "item", or of
    the first attribute. "frechet_distance": of the judge's features to `reference`; left out without one.
    """
    return scores_of_outputs(judge, *judge_outputs(judge, images), prompts, reference)


def correctness(judge: Judge, logits: dict[str, Tensor], prompts: Sequence[str]) -> dict[str, Tensor]:
    """Per attribute, and for "all" that a prompt names: n values, 1 for right, 0 for wrong, NaN where none is named.

    Attributes that no prompt names are left out.
    """
    labels = judge.label_tensors(prompts)
    named = {name: labels[name] >= 0 for name in logits}
    right = {name: logits[name].argmax(1) == labels[name] for name in logits}
    values = {name: _where(named[name], right[name]) for name in logits if named[name].any()}
    if values:
        all_right = torch.stack([right[name] | ~named[name] for name in logits]).all(0)
        values["all"] = _where(torch.stack(list(named.values())).any(0), all_right)
    return values


def _where(named: Tensor, right: Tensor) -> Tensor:
    return torch.where(named, right.double(), torch.nan)


def scores_of_outputs(
    judge: Judge, features: Tensor, logits: dict[str, Tensor], prompts: Sequence[str], reference: Statistics | None
) -> dict[str, float]:
    """As judge_scores, from what judge_outputs returned."""
    scores = {name: values.nanmean().item() for name, values in correctness(judge, logits, prompts).items()}
    classes = logits["item" if "item" in logits else next(iter(logits))]
    scores["inception_score"] = inception_score(classes.softmax(1))[0]
    if reference is not None and len(features) > 1:
        scores["frechet_distance"] = frechet_distance(Statistics.of(features), reference)
    return scores
