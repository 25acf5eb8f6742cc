"""Two metrics of image sets from a classifier's outputs: Frechet distance and inception score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

from ..storage.tensors import load_tensors, save_tensors


@dataclass(frozen=True)
class Statistics:
    """Mean [d] and covariance [d, d] (fp64) of the features of `count` images."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """features [n, d], n at least 2; the covariance is the unbiased one."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1), len(features))

    def save(self, path: Path, dtype: torch.dtype = torch.float64) -> None:
        tensors = {"mean": self.mean.to(dtype), "covariance": self.covariance.to(dtype)}
        save_tensors(path, {**tensors, "count": torch.tensor(self.count)})

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Raises RcdeployError when the file lacks mean, covariance or count, or they do not fit."""
        tensors = load_tensors(path)
        try:
            statistics = cls(tensors["mean"].double(), tensors["covariance"].double(), int(tensors["count"]))
        except KeyError as error:
            raise RcdeployError(
                f"{path} holds no statistics of images: it lacks {error}",
                fix="`rcdeploy evaluate --reference FOLDER` makes them from a folder of images.",
            ) from None
        d = len(statistics.mean) if statistics.mean.ndim == 1 else -1
        if statistics.covariance.shape != (d, d):
            shapes = f"mean {tuple(statistics.mean.shape)}, covariance {tuple(statistics.covariance.shape)}"
            raise RcdeployError(f"{path}: {shapes}, but [d] and [d, d] are needed")
        return statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, equation 6).

    The trace of the root is taken as that of (A C_b A)^(1/2) with A = C_a^(1/2): the same number, of a matrix that is
    symmetric, so it stays real when a covariance is singular. Raises RcdeployError when the features differ in number.
    """
    if a.mean.shape != b.mean.shape:
        raise RcdeployError(
            f"statistics of {len(a.mean)} features cannot be compared with statistics of {len(b.mean)}",
            fix="Make the reference with the same network.",
        )
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    between = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    squared = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * between
    return float(squared.clamp(min=0))


def inception_score(probabilities: Tensor, splits: int = 1) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) (Salimans et al. 2016), over `splits` parts in the order given: mean, deviation.

    probabilities: [n, classes], each row a distribution; n at least `splits`.
    """
    n = len(probabilities)
    scores = []
    for i in range(splits):
        part = probabilities[i * n // splits : (i + 1) * n // splits].double()
        marginal = part.mean(0, keepdim=True)
        divergence = torch.xlogy(part, part) - torch.xlogy(part, marginal)
        scores.append(divergence.sum(1).mean().exp())
    stacked = torch.stack(scores)
    return float(stacked.mean()), float(stacked.std(correction=0))
