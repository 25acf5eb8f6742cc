"""Random conditioning, the paper's idea (section 3.3, equation 3, Table C).

A noisy latent x_t keeps its own prompt with probability 1 - p(t), and is paired with a random prompt of the pool with
probability p(t). For large t, x_t holds little information about its prompt; for small t the model hardly uses the
prompt; so the teacher's output is a useful target either way, and the student sees prompts without a cached latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .random_streams import TRAINING, generator

if TYPE_CHECKING:
    from .recipe import Conditioning

Array = NDArray[np.float64]
Probability = Callable[[Array], Array]
"""Maps u = t / T in [0, 1) to p(t) in [0, 1]."""

NULL, PAIRED, UNPAIRED = -1, 0, 1
"""The kinds of a sample's prompt: the null condition, its latent's own prompt, a random one of the pool."""


def none(u: Array) -> Array:
    return np.zeros_like(u)


def exponential(u: Array, rate: float = 5.0) -> Array:
    """exp(-lambda (1 - t/T)); lambda = 5 is in the authors' code only."""
    return np.exp(-rate * (1 - u))


def mirrored_exponential(u: Array, rate: float = 5.0) -> Array:
    """exp(-lambda (1 - t/T)) for t > T/2, exp(-lambda t/T) below."""
    return np.exp(-rate * np.where(u > 0.5, 1 - u, u))


def linear(u: Array) -> Array:
    """t/T."""
    return u


def sigmoid(u: Array, steepness: float = 20.0, centre: float = 0.7) -> Array:
    """1 / (1 + exp(-20 (t/T - 0.7))): channel students."""
    return 1 / (1 + np.exp(-steepness * (u - centre)))


def constant(u: Array, p: float = 0.5) -> Array:
    """p, whatever t."""
    return np.full_like(u, p)


def probability(
    name: str, *, rate: float = 5.0, steepness: float = 20.0, centre: float = 0.7, p: float = 0.5
) -> Probability:
    """p(t) by its name in a recipe. Raises KeyError for a name that is not in Table C."""
    table: dict[str, Probability] = {
        "none": none,
        "exponential": lambda u: exponential(u, rate),
        "mirrored-exponential": lambda u: mirrored_exponential(u, rate),
        "linear": linear,
        "sigmoid": lambda u: sigmoid(u, steepness, centre),
        "constant": lambda u: constant(u, p),
    }
    return table[name]


def recipe_probability(conditioning: Conditioning) -> Probability:
    """The p(t) of a recipe's section [conditioning]."""
    c = conditioning
    return probability(c.probability, rate=c.rate, steepness=c.steepness, centre=c.centre, p=c.constant)


def formula(conditioning: Conditioning) -> str:
    """The p(t) of a recipe's section [conditioning], with its parameters, as a result names it."""
    c = conditioning
    slope = "" if c.steepness == 20 else f", steepness {c.steepness:g}"
    return {
        "none": "0",
        "exponential": f"exp(-{c.rate:g} (1 - t/T))",
        "mirrored-exponential": f"exp(-{c.rate:g} (1 - t/T)) for t > T/2, else exp(-{c.rate:g} t/T)",
        "linear": "t/T",
        "sigmoid": f"sigmoid centred at t/T = {c.centre:g}{slope}",
        "constant": f"{c.constant:g}",
    }[c.probability]


@dataclass(frozen=True)
class Draw:
    """One training sample: a row of the latent cache, its timestep, the kind of its prompt, its noise."""

    row: int
    timestep: int
    prompt_kind: int
    """NULL, PAIRED (the row's own prompt), or UNPAIRED."""
    prompt: int
    """Index into the prompt pool, when UNPAIRED."""
    noise: NDArray[np.float32]
    """[c, h, w]."""


@dataclass(frozen=True)
class RandomConditioning:
    """Draws training samples. Sample i of step s is a function of (seed, s, i) alone.

    p: the conditioning probability, of t / num_train_timesteps. rows: latents in the cache. pool_size: prompts in C.
    timesteps: those that samples are drawn at; all by default.
    """

    p: Probability
    rows: int
    pool_size: int
    num_train_timesteps: int = 1000
    null_probability: float = 0.1
    seed: int = 0
    timesteps: tuple[int, ...] | None = None

    @classmethod
    def from_recipe(
        cls,
        section: Conditioning,
        *,
        rows: int,
        pool_size: int,
        num_train_timesteps: int,
        seed: int,
        timesteps: tuple[int, ...] | None = None,
    ) -> RandomConditioning:
        """Random conditioning as a recipe's section [conditioning] has it."""
        p = recipe_probability(section)
        return cls(p, rows, pool_size, num_train_timesteps, section.null_probability, seed, timesteps)

    @property
    def ever_replaces(self) -> bool:
        """Whether p(t) is above 0 anywhere."""
        return bool((self.p(np.arange(self.num_train_timesteps) / self.num_train_timesteps) > 0).any())

    def draw(self, step: int, sample: int, latent_shape: tuple[int, ...]) -> Draw:
        """Sample row and t uniformly, replace the prompt with probability p(t) (eq. 3), then drop it at random."""
        rng = generator(self.seed, TRAINING, step, sample)
        row = int(rng.integers(self.rows))
        if self.timesteps is None:
            timestep = int(rng.integers(self.num_train_timesteps))
        else:
            timestep = self.timesteps[int(rng.integers(len(self.timesteps)))]
        prompt = int(rng.integers(self.pool_size))
        replace, drop = rng.random(2)
        probability = self.p(np.float64(timestep / self.num_train_timesteps))  # type: ignore[arg-type]
        prompt_kind = UNPAIRED if replace < probability else PAIRED
        if drop < self.null_probability:
            prompt_kind = NULL
        return Draw(row, timestep, prompt_kind, prompt, rng.standard_normal(latent_shape, np.float32))
