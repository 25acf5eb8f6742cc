"""T2I-CompBench's scores of all categories (paper, Table D): each prompt is scored as its own category is.

Colour, shape and texture by BLIP-VQA; spatial by a detector (spatial.py); non-spatial by CLIP; complex by the
benchmark's 3-in-1 (3_in_1_eval/3_in_1.py of github.com/Karine-Huang/T2I-CompBench): the mean of BLIP-VQA with the score
of places, with CLIP's for actions, or with both, where CLIP reads the prompt without its adjectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .compbench_prompts import CATEGORIES, NETWORKS, CompbenchPrompts
from .spatial import Detector, Relation, complex_relation, simple_relation, spatial_score
from .vqa import NounPhrases

AVERAGE = "average"


@dataclass(frozen=True)
class Compbench:
    """Scores images by their prompts' categories.

    Args:
        prompts: by category.
        phrases: parses prompts.
        vqa: images uint8 [n, 3, h, w] and the noun phrases of their prompts -> [n]. clip: images and texts -> [n].
            detector: finds objects. None where no category needs it.
    """

    prompts: CompbenchPrompts
    phrases: NounPhrases
    vqa: Callable[[Tensor, Sequence[Sequence[str]]], Tensor] | None = None
    clip: Callable[[Tensor, Sequence[str]], Tensor] | None = None
    detector: Detector | None = None

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Images uint8 [n, 3, h, w] and n prompts -> by category [n], NaN for prompts of other categories."""
        outputs = {}
        for category, own in self.prompts.by_category.items():
            rows = [i for i, prompt in enumerate(prompts) if prompt in own]
            outputs[category] = torch.full((len(prompts),), torch.nan)
            if rows:
                outputs[category][rows] = self._score(category, images[rows], [prompts[i] for i in rows])
        return outputs

    def _score(self, category: str, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if category == "complex":
            return self._complex(images, prompts)
        network = NETWORKS[category][0]
        if network == "vqa":
            return self._attributes(images, prompts)
        return self._places(images, prompts, simple_relation) if network == "detector" else self._clip(images, prompts)

    def _attributes(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert self.vqa is not None
        return self.vqa(images, [self.phrases(prompt) for prompt in prompts]).cpu()

    def _clip(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        assert self.clip is not None
        return self.clip(images, texts).cpu()

    def _places(self, images: Tensor, prompts: Sequence[str], relation_of: Callable[[Any], Relation]) -> Tensor:
        assert self.detector is not None
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            relation = relation_of(self.phrases.parse(prompt))
            names = list(dict.fromkeys(relation.objects or ()))
            scores.append(spatial_score(self.detector(image, names) if names else [], relation))
        return torch.tensor(scores)

    def _complex(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """3-in-1; what a prompt's relation leaves out is computed all the same."""
        texts = [without_adjectives(self.phrases.parse(prompt)) for prompt in prompts]
        parts = {
            "attributes": self._attributes(images, prompts),
            "spatial": self._places(images, prompts, complex_relation),
            "action": self._clip(images, texts),
        }
        relations = [self.prompts.relation(prompt) for prompt in prompts]
        return torch.stack([three_in_one({k: v[i] for k, v in parts.items()}, r) for i, r in enumerate(relations)])


def three_in_one(parts: Mapping[str, Tensor], relation: str | None) -> Tensor:
    """parts: "attributes", "spatial" and "action" of an image. relation: the prompt's only one, or None."""
    chosen = [parts["attributes"], parts[relation]] if relation else list(parts.values())
    return torch.stack(chosen).mean()


def without_adjectives(doc: Any) -> str:
    """A prompt (spaCy's Doc) as CLIP reads a complex one."""
    return " ".join(token.text for token in doc if token.pos_ != "ADJ")


def compbench_scores(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Outputs of Compbench -> the mean of every category that has a prompt, and of all six where they are there."""
    means = {name: values.double().nanmean().item() for name, values in outputs.items() if not values.isnan().all()}
    means = {name: means[name] for name in CATEGORIES if name in means}
    return means | ({AVERAGE: sum(means.values()) / len(means)} if len(means) == len(CATEGORIES) else {})
