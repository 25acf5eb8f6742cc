"""What a judge says of pictures, in figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .frechet import Statistics, frechet_distance, inception_score
from .judge import Judge

BATCH = 256


@torch.inference_mode()
def judge_readings(judge: Judge, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """images [n, 3, h, w] in [0, 1] -> features [n, d] and, per attribute, logits [n, number of labels]; fp32."""
    features, logits = [], []
    device = next(judge.parameters()).device
    for part in images.split(BATCH):
        features.append(judge.features(part.to(device).float()))
        logits.append({name: head(features[-1]) for name, head in judge.heads.items()})
    return torch.cat(features).cpu(), {name: torch.cat([row[name] for row in logits]).cpu() for name in judge.heads}


def judge_scores(
    judge: Judge, images: Tensor, prompts: Sequence[str], reference: Statistics | None = None
) -> dict[str, float]:
    """Scores of images [n, 3, h, w] in [0, 1] that were drawn for n prompts.

    Per attribute, and for "all" (every attribute that a prompt names is right): the fraction of right pictures among
    those whose prompt names it; left out when no prompt does. "inception_score": of the probabilities of "item", or of
    the first attribute. "frechet_distance": of the judge's features to `reference`; left out without one.
    """
    return scores_of_readings(judge, *judge_readings(judge, images), prompts, reference)


def scores_of_readings(
    judge: Judge, features: Tensor, logits: dict[str, Tensor], prompts: Sequence[str], reference: Statistics | None
) -> dict[str, float]:
    """As judge_scores, from what judge_readings gave."""
    wanted = [judge.wanted(prompt) for prompt in prompts]
    asked = {name: torch.tensor([w.get(name, -1) for w in wanted]) for name in logits}
    named = {name: labels >= 0 for name, labels in asked.items()}
    right = {name: logits[name].argmax(1) == labels for name, labels in asked.items()}
    scores = {name: right[name][named[name]].double().mean().item() for name in logits if named[name].any()}
    if scores:
        any_named = torch.stack(list(named.values())).any(0)
        all_right = torch.stack([right[name] | ~named[name] for name in logits]).all(0)
        scores["all"] = all_right[any_named].double().mean().item()
    kinds = logits["item" if "item" in logits else next(iter(logits))]
    scores["inception_score"] = inception_score(kinds.softmax(1))[0]
    if reference is not None and len(features) > 1:
        scores["frechet_distance"] = frechet_distance(Statistics.of(features), reference)
    return scores
