"""Random conditioning: Table C, how often a prompt is replaced, and that randomness has no state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rcdeploy.conditioning import NULL, PAIRED, UNPAIRED, RandomConditioning, probability
from rcdeploy.random_streams import TRAINING, generator

T = 1000
# Table C as reference.md has it, in plain arithmetic of t and T
TABLE_C = {
    "none": lambda t: 0.0,
    "exponential": lambda t: math.exp(-5 * (1 - t / T)),
    "mirrored-exponential": lambda t: math.exp(-5 * (1 - t / T)) if t > T / 2 else math.exp(-5 * t / T),
    "linear": lambda t: t / T,
    "sigmoid": lambda t: 1 / (1 + math.exp(-20 * (t / T - 0.7))),
    "constant": lambda t: 0.5,
}
SHAPE = (1, 1, 1)


@pytest.mark.parametrize("name", TABLE_C)
@pytest.mark.parametrize("t", [0, 1, 100, 499, 500, 501, 700, 850, 999])
def test_table_c(name: str, t: int) -> None:
    assert probability(name)(np.float64(t / T)) == pytest.approx(TABLE_C[name](t), rel=1e-12, abs=1e-15)


def test_table_c_in_numbers() -> None:
    """Values worked out by hand, so that a slip in both formulas above cannot hide."""
    u = np.array([0.0, 0.5, 0.7, 1.0])
    assert probability("exponential")(u) == pytest.approx([0.006738, 0.082085, 0.223130, 1.0], abs=1e-6)
    assert probability("mirrored-exponential")(u) == pytest.approx([1.0, 0.082085, 0.223130, 1.0], abs=1e-6)
    assert probability("sigmoid")(u) == pytest.approx([8.315e-7, 0.017986, 0.5, 0.997527], abs=1e-6)
    assert probability("constant", p=1.0)(u) == pytest.approx([1.0] * 4)


def test_parameters_of_the_formulas() -> None:
    assert probability("exponential", rate=2.0)(np.float64(0.5)) == pytest.approx(math.exp(-1))
    assert probability("mirrored-exponential", rate=2.0)(np.float64(0.25)) == pytest.approx(math.exp(-0.5))
    assert probability("sigmoid", steepness=10.0, centre=0.5)(np.float64(0.6)) == pytest.approx(1 / (1 + math.exp(-1)))
    with pytest.raises(KeyError):
        probability("cosine")


def draws(name: str, n: int, *, null: float = 0.0, **parameters: float) -> list[tuple[int, int, int, int]]:
    """(row, timestep, prompt kind, prompt) of n samples, over steps of 100."""
    conditioning = RandomConditioning(
        probability(name, **parameters), rows=7, pool_size=11, null_probability=null, seed=3
    )
    samples = (conditioning.draw(i // 100, i % 100, SHAPE) for i in range(n))
    return [(s.row, s.timestep, s.prompt_kind, s.prompt) for s in samples]


def within(hits: int, of: int, p: float, deviations: float = 4.5) -> bool:
    """Whether a binomial count is within 4.5 standard deviations: chance exceeds that once in 150,000 bins."""
    return abs(hits - of * p) <= deviations * math.sqrt(of * p * (1 - p)) + 1e-9


@pytest.mark.parametrize("name", TABLE_C)
def test_prompts_are_replaced_with_probability_p_of_t(name: str) -> None:
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(20)]
    for _, t, kind, _ in draws(name, 12_000):
        bins[t * 20 // T].append((TABLE_C[name](t), kind == UNPAIRED))
    for number, samples in enumerate(bins):
        expected = sum(p for p, _ in samples)
        spread = math.sqrt(sum(p * (1 - p) for p, _ in samples))
        replaced = sum(is_unpaired for _, is_unpaired in samples)
        # where p is tiny the normal bound is too narrow for counts: one more is allowed
        assert abs(replaced - expected) <= 4.5 * spread + (1 if 0 < expected < 10 else 1e-9), (name, number)


def test_constant_one_replaces_every_prompt() -> None:
    assert {kind for _, _, kind, _ in draws("constant", 500, p=1.0)} == {UNPAIRED}
    assert {kind for _, _, kind, _ in draws("none", 500)} == {PAIRED}


def test_the_null_condition_comes_after_the_replacement() -> None:
    """10 % of all, paired and unpaired alike, whatever p(t), which splits the rest."""
    kinds = [kind for _, _, kind, _ in draws("constant", 20_000, null=0.1)]
    nulls = kinds.count(NULL)
    assert within(nulls, len(kinds), 0.1)
    assert within(kinds.count(UNPAIRED), len(kinds) - nulls, 0.5)
    for name in ("none", "linear"):
        assert within([kind for _, _, kind, _ in draws(name, 5_000, null=0.1)].count(NULL), 5_000, 0.1)


def test_rows_timesteps_and_prompts_are_uniform() -> None:
    samples = draws("linear", 14_000)
    rows = np.bincount([s[0] for s in samples], minlength=7)
    prompts = np.bincount([s[3] for s in samples if s[2] == UNPAIRED], minlength=11)
    timesteps = np.bincount([s[1] * 20 // T for s in samples], minlength=20)
    assert len(rows) == 7 and len(prompts) == 11 and len(timesteps) == 20
    for counts in (rows, prompts, timesteps):
        assert all(within(int(c), int(counts.sum()), 1 / len(counts)) for c in counts)
    assert {min(s[1] for s in samples), max(s[1] for s in samples)} <= {0, T - 1}, "both ends are reached"


def test_timesteps_end_before_num_train_timesteps() -> None:
    conditioning = RandomConditioning(probability("none"), rows=1, pool_size=1, num_train_timesteps=4)
    assert {conditioning.draw(0, i, SHAPE).timestep for i in range(200)} == {0, 1, 2, 3}


def test_p_is_of_the_timestep_as_a_fraction() -> None:
    """With T = 4 the linear function replaces a quarter, a half, three quarters, and never at t = 0."""
    conditioning = RandomConditioning(
        probability("linear"), rows=1, pool_size=1, num_train_timesteps=4, null_probability=0.0
    )
    samples = [conditioning.draw(0, i, SHAPE) for i in range(8_000)]
    for t in range(4):
        unpaired = [s.prompt_kind == UNPAIRED for s in samples if s.timestep == t]
        assert within(sum(unpaired), len(unpaired), t / 4)


def test_a_draw_is_a_function_of_seed_step_and_sample_alone() -> None:
    first = RandomConditioning(probability("linear"), rows=1000, pool_size=1000, seed=5)
    again = RandomConditioning(probability("linear"), rows=1000, pool_size=1000, seed=5)
    forwards = [first.draw(step, i, (2, 3, 3)) for step in range(3) for i in range(4)]
    np.random.default_rng(0).random(10)  # other code draws in between
    backwards = [again.draw(step, i, (2, 3, 3)) for step in (2, 1, 0) for i in (3, 2, 1, 0)][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert (a.row, a.timestep, a.prompt_kind, a.prompt) == (b.row, b.timestep, b.prompt_kind, b.prompt)
        assert a.noise.tobytes() == b.noise.tobytes()


def test_other_seeds_steps_samples_and_streams_draw_otherwise() -> None:
    noise = [
        RandomConditioning(probability("none"), 1, 1, seed=seed).draw(step, sample, (4, 4, 4)).noise.tobytes()
        for seed in (0, 1)
        for step in (0, 1, 2**33)
        for sample in (0, 1)
    ]
    assert len(set(noise)) == 12
    streams = {generator(0, stream, 1, 2).random(4).tobytes() for stream in range(5)}
    assert len(streams) == 5
    # neighbouring counters do not overlap: a long draw of one sample is not the next sample's
    long = generator(0, TRAINING, 0, 0).standard_normal(4096)
    assert not np.isin(generator(0, TRAINING, 0, 1).standard_normal(64), long).any()
    assert not np.isin(generator(0, TRAINING, 1, 0).standard_normal(64), long).any()


def test_noise_is_standard_normal() -> None:
    conditioning = RandomConditioning(probability("none"), rows=1, pool_size=1)
    noise = np.stack([conditioning.draw(0, i, (4, 8, 8)).noise for i in range(100)])
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / noise.size)
