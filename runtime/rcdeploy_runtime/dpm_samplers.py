"""DPM-Solver++ and UniPC, which step in the log of the signal-to-noise ratio. Part of samplers.py.

Where a package's configuration says use_karras_sigmas, the sigmas are those of Karras et al. 2022.
"""

from __future__ import annotations

import math

import numpy as np

from .errors import RcdeployError
from .noise import Noise
from .noise_schedule import Array, NoiseSchedule
from .sampler_base import Sampler
from .sigmas import NO, OTHER_SIGMAS, SIGMA_RANGE, karras_sigmas, timesteps_of, train_sigmas

FEW_STEPS = 15
"""below so many DPM-Solver++ ends with a step of first order, wherever it ends"""


class DPMSolver(Sampler):
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order, midpoint; to sigma 0 a last step of first order."""

    default_spacing = "linspace"
    divides_by_signal = False
    follows = {
        **OTHER_SIGMAS,
        "use_lu_lambdas": NO,
        "use_flow_sigmas": NO,
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
        "solver_order": (2,),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "lower_order_final": (True,),
        "lambda_min_clipped": (-math.inf,),
        "variance_type": (None,),
    }

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise, skip)
        of_timestep = train_sigmas(schedule)
        sigmas = of_timestep[self.timesteps]
        if schedule.config.use_karras_sigmas:
            sigmas = karras_sigmas(of_timestep[-1], of_timestep[0], num_inference_steps)[skip:]
            self.timesteps = timesteps_of(sigmas, of_timestep).round().astype(np.int64)
        last = of_timestep[0] if schedule.config.final_sigmas_type == "sigma_min" else 0
        self._sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
        if (np.diff(self._sigmas[:-1]) >= 0).any():
            raise RcdeployError(
                "on this noise schedule timesteps have the same noise, and this sampler cannot step between them",
                fix='Use sampler="ddim".',
            )
        self._previous_x_0: Array | None = None

    def _timesteps(self, n: int) -> Array:
        T = len(self.schedule)
        if self.spacing == "leading":
            return np.round(np.arange(n + 1) * (T // (n + 1)))[::-1][:-1].astype(np.int64) + self.steps_offset
        if self.spacing == "trailing":
            return super()._timesteps(n)
        return np.linspace(0, T - 1, n + 1).round()[::-1][:-1].astype(np.int64)

    def _coefficients(self, i: int) -> tuple[float, float, float]:
        """alpha, sigma (alpha^2 + sigma^2 = 1) and lambda, half the log of the signal-to-noise ratio, at visit i."""
        ratio = float(self._sigmas[i])
        alpha = 1 / (ratio**2 + 1) ** 0.5
        return alpha, ratio * alpha, -math.log(ratio) if ratio else math.inf

    def _log_snr_step(self, i: int) -> float:
        """h: how far lambda goes from visit i to the next."""
        return self._coefficients(i + 1)[2] - self._coefficients(i)[2]

    def _x_0(self, noise_pred: Array, i: int, x: Array) -> Array:
        alpha, sigma, _ = self._coefficients(i)
        self.pred_original_sample, _ = self.schedule.split(noise_pred, x, alpha, sigma)
        return self.pred_original_sample

    def _advance(self, i: int, x: Array, x_0: Array) -> Array:
        """x at visit i -> x at the next, for an x_0 that stays the same between them (first order)."""
        _, sigma, _ = self._coefficients(i)
        next_alpha, next_sigma, _ = self._coefficients(i + 1)
        x_next: Array = next_sigma / sigma * x - next_alpha * math.expm1(-self._log_snr_step(i)) * x_0
        return x_next

    def _midpoint(self, i: int, x_0: Array, previous_x_0: Array) -> Array:
        """x_0 halfway to the next visit, on the line through the last two."""
        ratio = self._log_snr_step(i) / self._log_snr_step(i - 1)
        midpoint: Array = x_0 + ratio / 2 * (x_0 - previous_x_0)
        return midpoint

    def _first_order(self, i: int) -> bool:
        if self._previous_x_0 is None:
            return True
        config = self.schedule.config
        few = self.num_inference_steps < FEW_STEPS
        return i + 1 == len(self.timesteps) and (few or config.euler_at_final or config.final_sigmas_type == "zero")

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        x_0 = self._x_0(noise_pred, i, x)
        previous_x_0 = x_0 if self._previous_x_0 is None else self._previous_x_0
        middle = x_0 if self._first_order(i) else self._midpoint(i, x_0, previous_x_0)
        self._previous_x_0 = x_0
        return self._advance(i, x, middle)

    def add_noise(self, x_0: Array, noise: Array, i: int) -> Array:
        alpha, sigma, _ = self._coefficients(i)
        return alpha * x_0 + sigma * noise


class DPMSolverSDE(DPMSolver):
    """SDE-DPM-Solver++(2M) of the same paper: the stochastic equation, with fresh noise at every step."""

    def _advance(self, i: int, x: Array, x_0: Array) -> Array:
        _, sigma, _ = self._coefficients(i)
        next_alpha, next_sigma, _ = self._coefficients(i + 1)
        h = self._log_snr_step(i)
        gain = max(0.0, -math.expm1(-2 * h))  # rounding: Karras' last sigma may lie below sigma_min
        # noise is drawn at the last step too, as diffusers does; it counts for nothing there
        x_next: Array = (
            next_sigma / sigma * math.exp(-h) * x + next_alpha * gain * x_0 + next_sigma * gain**0.5 * self.noise()
        )
        return x_next


class UniPC(DPMSolver):
    """Zhao et al. 2023, order 2, B(h) = e^h - 1 (bh2): DPM-Solver++'s steps, each corrected by the x_0 at its end."""

    follows = {
        **OTHER_SIGMAS,
        **SIGMA_RANGE,
        "use_flow_sigmas": NO,
        "predict_x0": (True,),
        "solver_order": (2,),
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),
        "lower_order_final": (True,),
        "disable_corrector": ([],),
        "solver_p": (None,),
    }

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise, skip)
        self._last_x: Array | None = None
        self._x_0s: list[Array] = []
        self._order = 1

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        x_0 = self._x_0(noise_pred, i, x)
        if self._last_x is not None:
            x = self._advance(i - 1, self._last_x, self._corrected(i, x_0))
        self._x_0s = [*self._x_0s[-1:], x_0]
        self._order = 1 if len(self._x_0s) == 1 or i + 1 == len(self.timesteps) else 2
        self._last_x = x
        return self._advance(i, x, x_0 if self._order == 1 else self._midpoint(i, x_0, self._x_0s[-2]))

    def _corrected(self, i: int, x_0: Array) -> Array:
        """The x_0 with which the step to visit i is taken again (UniC), of the order that it was predicted with."""
        before = self._x_0s[-1]
        if self._order == 1:
            return (before + x_0) / 2
        h = self._log_snr_step(i - 1)
        r = -self._log_snr_step(i - 2) / h
        b = math.expm1(-h)
        b_1 = (b / -h - 1) / b
        b_2 = 2 * ((b / -h - 1) / -h - 0.5) / b
        weight = (b_1 - b_2) / (1 - r)  # weights solve [[1, 1], [r, 1]] w = [b_1, b_2]
        corrected: Array = before + weight / r * (self._x_0s[-2] - before) + (b_1 - weight) * (x_0 - before)
        return corrected
