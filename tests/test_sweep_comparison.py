"""Which differences a table calls one: the tests against scipy's, and their behaviour on synthetic data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcdeploy.evaluate.frechet import Statistics
from rcdeploy.sweep.comparison import CaptionValues, differing, paired_p
from rcdeploy.sweep.statistics_tests import bootstrap, holm, mcnemar, t_test, t_two_sided

N = 300


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 9])
def test_t_is_scipys(degrees: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (0.1, 1.0, 4.3, 12.7):
        assert t_two_sided(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), abs=1e-10)
        assert t_two_sided(-t, degrees) == t_two_sided(t, degrees)
    values = [0.3, 0.1, 0.4, 0.15]
    assert t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_mcnemar_is_the_binomial_test_of_discordant_pairs() -> None:
    a = np.array([True] * 12 + [False] * 2 + [True] * 50)
    b = np.array([False] * 12 + [True] * 2 + [True] * 50)
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert mcnemar(a, b) == mcnemar(b, a)
    assert mcnemar(a, a) == 1


def test_one_seed_and_equal_seeds() -> None:
    assert t_test([5.0]) == 1, "one seed says nothing of others"
    assert t_test([0.0, 0.0]) == 1
    assert t_test([0.2, 0.2]) == 0


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_the_bootstrap_of_a_mean_is_near_the_t_test() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0.15, 1, N)
    p = bootstrap(lambda rows: float(x[rows].mean()), N)
    assert p == pytest.approx(t_two_sided(x.mean() / (x.std(ddof=1) / N**0.5), N - 1), abs=0.07)


def shares(probability: float, seed: int, captions: np.ndarray) -> CaptionValues:
    """Right where a caption's difficulty is below `probability`, with some noise of the seed."""
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, N)
    return CaptionValues(torch.from_numpy((captions + noise < probability).astype(float)), is_share=True)


def test_shares_that_differ_in_every_seed_alike_differ() -> None:
    captions = np.random.default_rng(0).uniform(size=N)
    pairs = [
        (shares(0.3, seed, captions), shares(p, 10 + seed, captions)) for seed, p in ((0, 0.5), (1, 0.52), (2, 0.49))
    ]
    assert paired_p(pairs) < 0.05
    assert paired_p(pairs[:1]) == 1, "one seed decides nothing"


def test_seeds_that_disagree_show_no_difference_however_many_captions() -> None:
    captions = np.random.default_rng(0).uniform(size=N)
    pairs = [
        (shares(0.4, seed, captions), shares(p, 10 + seed, captions)) for seed, p in ((0, 0.8), (1, 0.35), (2, 0.6))
    ]
    assert paired_p(pairs) > 0.05


def test_captions_that_are_too_few_show_no_difference_however_equal_the_seeds() -> None:
    a = CaptionValues(torch.tensor([0.0, 1, 0, 1, 1, 0]), is_share=True)
    b = CaptionValues(torch.tensor([1.0, 1, 0, 1, 1, 0]), is_share=True)
    assert paired_p([(a, b), (a, b)]) > 0.05


def test_captions_without_the_attribute_do_not_count() -> None:
    a = CaptionValues(torch.tensor([0.0, float("nan"), 1, 0]), is_share=True)
    b = CaptionValues(torch.tensor([1.0, float("nan"), 1, 1]), is_share=True)
    assert b.metric() == 1 and a.metric() == pytest.approx(1 / 3)
    assert paired_p([(a, b), (a, b)]) == pytest.approx(2 / 2**4)


def frechet(shift: float, seed: int) -> CaptionValues:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(N, 4, generator=rng) + shift
    return CaptionValues(features, reference=Statistics(torch.zeros(4).double(), torch.eye(4).double(), 1000))


def test_frechet_distances() -> None:
    far = [(frechet(0.2, seed), frechet(0.6 + 0.01 * seed, 10 + seed)) for seed in range(3)]
    assert paired_p(far) < 0.05
    alike = [(frechet(0.2, 100 + seed), frechet(0.2, 200 + seed)) for seed in range(3)]
    assert paired_p(alike) > 0.05


def test_chance_alone_is_seldom_called_a_difference() -> None:
    """Two variants with one distribution over seeds and captions: about one in twenty."""
    called = 0
    by_caption = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        captions = rng.uniform(size=N)
        levels = rng.normal(0.5, 0.05, (3, 2))
        pairs = [
            (shares(a, 100 * trial + i, captions), shares(b, 100 * trial + 50 + i, captions))
            for i, (a, b) in enumerate(levels)
        ]
        called += paired_p(pairs) < 0.05
        by_caption += mcnemar(*(np.concatenate([pair[i].values.numpy() == 1 for pair in pairs]) for i in (0, 1))) < 0.05
    assert by_caption > 15, "the captions alone would call chance between seeds a difference"
    assert called <= 5


def test_differing() -> None:
    rows = [{"label": "with", "figures": {"all item": {"p": 0.01}, "all colour": {"p": 0.2}}}]
    assert differing({"significance": 0.05, "lines": rows}) == {("with", "all item")}
    assert differing(None) == set()
