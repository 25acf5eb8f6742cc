"""Tests of paired differences: exact McNemar, bootstrap over captions, t over seeds, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

K = TypeVar("K")
RESAMPLES = 999
"""of the bootstrap; its smallest p is 2 / (RESAMPLES + 1)"""
BOOTSTRAP_SEED = 0


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact McNemar test of paired binary outcomes: the two-sided p of the discordant pairs, half of which go each way.

    a, b: booleans of one shape; pairs that agree say nothing.
    """
    only_a = int((a & ~b).sum())
    only_b = int((b & ~a).sum())
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant) if discordant else 1.0


def bootstrap(difference: Callable[[np.ndarray], float], captions: int) -> float:
    """Two-sided p of a difference of 0 by the percentile bootstrap.

    difference: of two statistics, from the same resampled rows of both; captions: their number.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    values = np.array([difference(rng.integers(captions, size=captions)) for _ in range(RESAMPLES)])
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return min(1.0, 2 * (int(tail) + 1) / (RESAMPLES + 1))


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p of a mean of 0, for one paired difference per seed (Student's t, n - 1 degrees of freedom)."""
    n = len(differences)
    if n < 2:
        return 1.0
    deviation = float(np.std(differences, ddof=1))
    mean = float(np.mean(differences))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return t_two_sided(mean / (deviation / math.sqrt(n)), n - 1)


def t_two_sided(t: float, degrees: int) -> float:
    """P(|T| >= |t|) for Student's t, degrees of freedom a whole number (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    theta = math.atan(abs(t) / math.sqrt(degrees))
    cosine = math.cos(theta)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    within = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return max(0.0, 1 - within)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """p values corrected for their number by Holm's method."""
    corrected: dict[K, float] = {}
    highest = 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        corrected[key] = highest
    return corrected
