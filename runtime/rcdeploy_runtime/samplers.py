"""Samplers in numpy: from noise to latents, each on the trajectory of diffusers' class of the same name.

A sampler is made for one image (or batch) and one noise schedule. It has the timesteps to visit, `scale_model_input`
(x as the UNet takes it), `step` (noise_pred at visit i -> the next x) and `add_noise` (where img2img begins). x is
float32 [n, c, h, w]; coefficients are float64 numbers. Ancestral samplers take fresh noise from `noise()`.
"""

from __future__ import annotations

import numpy as np

from .dpm_samplers import DPMSolver, DPMSolverSDE, UniPC
from .errors import RcdeployError
from .euler_samplers import Euler, EulerAncestral, Heun
from .noise import Noise
from .noise_schedule import Array, NoiseSchedule
from .sampler_base import Sampler, noisy_latents

RUNGE_KUTTA_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
RUNGE_KUTTA_VISITS = 12
"""of PNDM's first three steps"""


class DDIM(Sampler):
    """Song et al. 2021, equations 12 and 16."""

    takes_eta = True

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        t = int(self.timesteps[i])
        alpha_bar = self._alpha_bar(t)
        previous = self._alpha_bar(t - len(self.schedule) // self.num_inference_steps)
        x_0, noise = self._split(noise_pred, x, alpha_bar)
        if not self.eta:
            return noisy_latents(previous, x_0, noise)
        fresh = self.eta**2 * (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)  # its variance
        kept = max(0.0, 1 - previous - fresh)
        x_next: Array = previous**0.5 * x_0 + kept**0.5 * noise + fresh**0.5 * self.noise()
        return x_next


class PNDM(Sampler):
    """Liu et al. 2022, multistep. Its start is one step taken twice (skip_prk_steps, as SD has it): steps + 1 visits.

    With skip_prk_steps false it starts with three pseudo Runge-Kutta steps of four visits each (steps + 9 in all), and
    takes 4 steps or more and no img2img. Like diffusers' class it does not rescale the betas to zero SNR: its formula
    divides by alphas_cumprod.
    """

    default_set_alpha_to_one = False

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule.without_zero_snr(), num_inference_steps, noise, skip)
        if schedule.prediction_type == "sample":
            raise RcdeployError(
                "the PNDM sampler needs a model that predicts epsilon or v; this one predicts x_0",
                fix='Use sampler="ddim".',
            )
        self._stride = len(self.schedule) // num_inference_steps
        self._outputs: list[Array] = []
        self._sum: Array | float = 0.0
        self._first_x: Array | None = None
        self._runge_kutta_visits = 0 if schedule.config.skip_prk_steps else RUNGE_KUTTA_VISITS
        t = self.timesteps
        if self._runge_kutta_visits:
            if skip or num_inference_steps < 4:
                raise RcdeployError(
                    "this package's PNDM starts with Runge-Kutta steps (skip_prk_steps is false): it takes 4 steps or "
                    "more, and begins from noise alone",
                    fix='Use sampler="ddim".',
                )
            half = self._stride // 2
            starts = [(t[k], t[k + 1] + half, t[k + 1] + half, t[k + 1]) for k in range(3)]
            self.timesteps = np.concatenate([*starts, t[3:]])
        elif len(t) > 1:
            self.timesteps = np.concatenate([t[:1], t[1:2], t[1:2], t[2:]])

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        if i < self._runge_kutta_visits:
            return self._runge_kutta_step(noise_pred, i, x)
        t = int(self.timesteps[i])
        if self._first_x is not None:  # the second visit corrects the first step
            noise_pred = (noise_pred + self._outputs[-1]) / 2
            x = self._first_x
            self._first_x = None
            return self._transfer(noise_pred, t + self._stride, t, x)
        self._outputs = [*self._outputs[-3:], noise_pred]
        o = self._outputs
        if len(o) == 1:
            self._first_x = x
            combined = noise_pred
        elif len(o) == 2:
            combined = (3 * o[-1] - o[-2]) / 2
        elif len(o) == 3:
            combined = (23 * o[-1] - 16 * o[-2] + 5 * o[-3]) / 12
        else:
            combined = (55 * o[-1] - 59 * o[-2] + 37 * o[-3] - 9 * o[-4]) / 24
        return self._transfer(combined, t, t - self._stride, x)

    def _runge_kutta_step(self, noise_pred: Array, i: int, x: Array) -> Array:
        """One of the four visits of a step (algorithm 2): start, middle, middle, end; x goes on from the start."""
        visit = i % 4
        if self._first_x is None:
            self._first_x = x
            self._outputs = [*self._outputs, noise_pred]
        first_x = self._first_x
        self._sum = self._sum + RUNGE_KUTTA_WEIGHTS[visit] * noise_pred
        if visit == 3:
            noise_pred = self._sum
            self._sum, self._first_x = 0.0, None
        back = 0 if visit % 2 else self._stride // 2
        return self._transfer(noise_pred, int(self.timesteps[i - visit]), int(self.timesteps[i]) - back, first_x)

    def _transfer(self, noise_pred: Array, t: int, previous_t: int, x: Array) -> Array:
        """x at t -> x at previous_t (equation 9 of the paper)."""
        a = self._alpha_bar(t)
        b = self._alpha_bar(previous_t)
        self.pred_original_sample, _ = self.schedule.split(noise_pred, x, a**0.5, (1 - a) ** 0.5)
        if self.schedule.prediction_type == "v_prediction":
            noise_pred = a**0.5 * noise_pred + (1 - a) ** 0.5 * x
        previous: Array = (b / a) ** 0.5 * x - (b - a) * noise_pred / (a * (1 - b) ** 0.5 + (a * (1 - a) * b) ** 0.5)
        return previous


class FewStepSampler(Sampler):
    """Timesteps of consistency distillation: n of the original_inference_steps that the student was trained on."""

    def _timesteps(self, n: int) -> Array:
        origin = self.schedule.config.original_inference_steps
        if n > origin:
            return np.asarray([-1])  # refused: none of the schedule
        training_steps = (np.arange(1, origin + 1) * (len(self.schedule) // origin) - 1)[::-1]
        return training_steps[np.floor(np.linspace(0, origin, n, endpoint=False)).astype(np.int64)]


class LCM(FewStepSampler):
    """Luo et al. 2023: for models distilled for consistency; few steps, with fresh noise between them."""

    SIGMA_DATA = 0.5

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        t = int(self.timesteps[i])
        x_0, _ = self._split(noise_pred, x, self._alpha_bar(t))
        scaled_t = t * self.schedule.config.timestep_scaling
        c_skip = self.SIGMA_DATA**2 / (scaled_t**2 + self.SIGMA_DATA**2)
        c_out = scaled_t / (scaled_t**2 + self.SIGMA_DATA**2) ** 0.5
        denoised: Array = c_out * x_0 + c_skip * x
        if i + 1 == len(self.timesteps):
            return denoised
        return noisy_latents(self._alpha_bar(int(self.timesteps[i + 1])), denoised, self.noise())


class TCD(FewStepSampler):
    """Zheng et al. 2024, eta its gamma (at 0 no noise is added): for models distilled for consistency.

    Like diffusers' class it ends at t = 0, where alphas_cumprod is a little below 1, and clips nothing.
    """

    takes_eta = True

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        alpha_bar = self._alpha_bar(int(self.timesteps[i]))
        x_0, noise = self.schedule.split(noise_pred, x, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        self.pred_original_sample = x_0
        last = i + 1 == len(self.timesteps)
        next_t = 0 if last else int(self.timesteps[i + 1])
        s = int(np.float32(1 - self.eta) * np.float32(next_t))  # float32, as in diffusers
        x_s = noisy_latents(self._alpha_bar(s), x_0, noise)
        if last or not self.eta:
            return x_s
        ratio = self._alpha_bar(next_t) / self._alpha_bar(s)
        x_next: Array = ratio**0.5 * x_s + (1 - ratio) ** 0.5 * self.noise()
        return x_next


SAMPLERS: dict[str, type[Sampler]] = {
    "ddim": DDIM,
    "pndm": PNDM,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "dpm++": DPMSolver,
    "dpm++_sde": DPMSolverSDE,
    "unipc": UniPC,
    "lcm": LCM,
    "tcd": TCD,
}


def make_sampler(
    name: str, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0, eta: float = 0.0
) -> Sampler:
    """A sampler of SAMPLERS.

    Args:
        skip: steps left out at the start (img2img).
        eta: how much of the noise is fresh at each step, 0 to 1.

    Raises:
        RcdeployError: the name is unknown, or the sampler cannot take this eta or number of steps, or cannot follow an
            option of the schedule's configuration.
    """
    if name not in SAMPLERS:
        raise RcdeployError(f"sampler is {name!r}, which is unknown", fix=f"Use one of: {', '.join(SAMPLERS)}.")
    if eta and not SAMPLERS[name].takes_eta:
        taking = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.takes_eta)
        raise RcdeployError(f"eta is {eta:g}, and the sampler {name} has none", fix=f"Samplers with eta: {taking}.")
    sampler = SAMPLERS[name](schedule, num_inference_steps, noise, skip)
    sampler.eta = eta
    return sampler
