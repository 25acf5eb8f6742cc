"""A judge: a small classifier that reads from a picture what its prompt asked for.

It stands beside a teacher whose prompts come from a grammar (examples/teachers/fashion/judge) and plays three parts:
accuracy per attribute, features for a Frechet distance, class probabilities for an inception score.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Attributes = dict[str, dict[str, list[str] | str]]
"""name -> {"labels": the classes, "pattern": a regular expression whose group 1 finds the label in a prompt}"""


class Judge(nn.Module):
    """Convolutions down to one feature vector, then one linear head per attribute.

    attributes: what is read from the picture, and how it is read from a prompt.
    width: channels of the first stage; features have 4 x width entries.
    """

    def __init__(self, attributes: Attributes, width: int = 32) -> None:
        super().__init__()
        self.attributes, self.width = attributes, width
        stages: list[nn.Module] = []
        # (channels in and out, kernel, stride): three times half the edge
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

    def wanted(self, prompt: str) -> dict[str, int]:
        """What the prompt asks for: label index per attribute; attributes it does not name are left out."""
        found = {}
        for name, attribute in self.attributes.items():
            match = re.search(str(attribute["pattern"]), prompt)
            if match:
                found[name] = list(attribute["labels"]).index(match.group(1))
        return found

    @torch.inference_mode()
    def verdicts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """images [n, 3, h, w] in [0, 1] and their n prompts -> per attribute n booleans: is it what was asked for."""
        logits = self(images)
        wanted = [self.wanted(p) for p in prompts]
        return {
            name: logits[name].argmax(1) == torch.tensor([w.get(name, -1) for w in wanted]) for name in self.attributes
        }

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = {"attributes": self.attributes, "width": self.width}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(half, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        config = json.loads((folder / "config.json").read_text())
        judge = cls(config["attributes"], config["width"])
        weights = load_file(folder / "model.safetensors")
        judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return judge.eval()
