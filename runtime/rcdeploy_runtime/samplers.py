"""Samplers in numpy: from noise to latents, each on the trajectory of diffusers' class of the same name.

A sampler is made for one image (or batch) and one noise schedule. It has the timesteps to visit, `scale_model_input`
(x as the UNet takes it), `step` (noise_pred at visit i -> the next x) and `add_noise` (where img2img begins). x is
float32 [n, c, h, w]; coefficients are float64 numbers. Ancestral samplers take fresh noise from `noise()`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array, NoiseSchedule
from .sampler_base import Noise, Sampler, noisy_latents

ZERO_SNR_ALPHA = 2.0**-24
"""stands for alphas_cumprod = 0 at the end of a zero-SNR schedule, so that sigma is finite (as in diffusers)"""


class DDIM(Sampler):
    """Song et al. 2021, eta 0."""

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        t = int(self.timesteps[i])
        previous = self._alpha_bar(t - len(self.schedule) // self.num_inference_steps)
        x_0, noise = self._split(noise_pred, x, self._alpha_bar(t))
        return noisy_latents(previous, x_0, noise)


class PNDM(Sampler):
    """Liu et al. 2022 without its Runge-Kutta start (skip_prk_steps, as SD has it): multistep, steps + 1 visits.

    Like diffusers' class it does not rescale the betas to zero SNR: its formula divides by alphas_cumprod.
    """

    default_set_alpha_to_one = False

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        if schedule.config.rescale_betas_zero_snr:
            schedule = NoiseSchedule.from_config(replace(schedule.config, rescale_betas_zero_snr=False))
        super().__init__(schedule, num_inference_steps, noise, skip)
        if schedule.prediction_type == "sample":
            raise RcdeployError(
                "the PNDM sampler needs a model that predicts epsilon or v; this one predicts x_0",
                fix='Use sampler="ddim".',
            )
        t = self.timesteps
        self.timesteps = np.concatenate([t[:1], t[1:2], t[1:2], t[2:]]) if len(t) > 1 else t
        self._outputs: list[Array] = []
        self._first_x: Array | None = None

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        t = int(self.timesteps[i])
        stride = len(self.schedule) // self.num_inference_steps
        if self._first_x is not None:  # the second visit corrects the first step
            noise_pred = (noise_pred + self._outputs[-1]) / 2
            x = self._first_x
            self._first_x = None
            return self._transfer(noise_pred, t + stride, t, x)
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
        return self._transfer(combined, t, t - stride, x)

    def _transfer(self, noise_pred: Array, t: int, previous_t: int, x: Array) -> Array:
        """x at t -> x at previous_t (equation 9 of the paper)."""
        a = self._alpha_bar(t)
        b = self._alpha_bar(previous_t)
        self.pred_original_sample, _ = self.schedule.split(noise_pred, x, a**0.5, (1 - a) ** 0.5)
        if self.schedule.prediction_type == "v_prediction":
            noise_pred = a**0.5 * noise_pred + (1 - a) ** 0.5 * x
        previous: Array = (b / a) ** 0.5 * x - (b - a) * noise_pred / (a * (1 - b) ** 0.5 + (a * (1 - a) * b) ** 0.5)
        return previous


class Euler(Sampler):
    """Karras et al. 2022, algorithm 2 without churn, on x = x_0 + sigma noise."""

    default_spacing = "linspace"
    divides_by_signal = False

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise, skip)
        train_sigmas = _train_sigmas(schedule)
        sigmas = np.interp(self.timesteps, np.arange(len(train_sigmas)), train_sigmas)
        self.sigmas = [float(s) for s in np.append(sigmas, 0).astype(np.float32)]
        largest = max(self.sigmas)
        self.init_noise_sigma = largest if self.spacing != "leading" else (largest**2 + 1) ** 0.5

    def _timesteps(self, n: int) -> Array:
        if self.spacing == "linspace":  # fractions stay
            return np.linspace(0, len(self.schedule) - 1, n, dtype=np.float32)[::-1]
        return super()._timesteps(n)

    def _lie_in_schedule(self, timesteps: Array) -> bool:
        """A timestep beyond the last has the last's sigma (np.interp), as in diffusers."""
        return bool(timesteps[-1] >= 0 and (np.diff(timesteps) < 0).all())

    def scale_model_input(self, x: Array, i: int) -> Array:
        scaled: Array = x / (self.sigmas[i] ** 2 + 1) ** 0.5
        return scaled

    def _derivative(self, noise_pred: Array, i: int, x: Array) -> Array:
        """dx/dsigma."""
        sigma = self.sigmas[i]
        norm = (sigma**2 + 1) ** 0.5
        x_0, _ = self.schedule.split(noise_pred, x / norm, 1 / norm, sigma / norm)
        self.pred_original_sample = x_0
        return (x - x_0) / sigma

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        return x + self._derivative(noise_pred, i, x) * (self.sigmas[i + 1] - self.sigmas[i])

    def add_noise(self, x_0: Array, noise: Array, i: int) -> Array:
        return x_0 + self.sigmas[i] * noise


class EulerAncestral(Euler):
    """Euler down to a smaller sigma, then fresh noise up to the next (k-diffusion's, eta 1)."""

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        sigma = self.sigmas[i]
        next_sigma = self.sigmas[i + 1]
        sigma_up = (next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2) ** 0.5
        sigma_down = (next_sigma**2 - sigma_up**2) ** 0.5
        # noise is drawn at the last step too, as diffusers does; it counts for nothing there
        x_next: Array = x + self._derivative(noise_pred, i, x) * (sigma_down - sigma) + self.noise() * sigma_up
        return x_next


def _train_sigmas(schedule: NoiseSchedule) -> Array:
    """sigma [T] of every timestep: noise over signal."""
    alphas_cumprod = schedule.alphas_cumprod.copy()
    if schedule.config.rescale_betas_zero_snr:
        alphas_cumprod[-1] = ZERO_SNR_ALPHA
    sigmas: Array = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    return sigmas


class DPMSolver(Sampler):
    """DPM-Solver++(2M), Lu et al. 2022: second order, midpoint, the last step of first order."""

    default_spacing = "linspace"
    divides_by_signal = False

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise, skip)
        sigmas = _train_sigmas(schedule)[self.timesteps]
        self._sigmas = np.append(sigmas, 0).astype(np.float32).astype(np.float64)
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

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        alpha, sigma, lambda_ = self._coefficients(i)
        next_alpha, next_sigma, next_lambda = self._coefficients(i + 1)
        x_0, _ = self.schedule.split(noise_pred, x, alpha, sigma)
        h = next_lambda - lambda_
        gain = next_alpha * -math.expm1(-h)
        x_next = next_sigma / sigma * x + gain * x_0
        if self._previous_x_0 is not None and i + 1 < len(self.timesteps):
            r = (lambda_ - self._coefficients(i - 1)[2]) / h
            x_next = x_next + 0.5 * gain / r * (x_0 - self._previous_x_0)
        self._previous_x_0 = x_0
        self.pred_original_sample = x_0
        return x_next

    def add_noise(self, x_0: Array, noise: Array, i: int) -> Array:
        alpha, sigma, _ = self._coefficients(i)
        return alpha * x_0 + sigma * noise


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
    """Zheng et al. 2024 at eta (the paper's gamma) 0, which adds no noise: for models distilled for consistency.

    Like diffusers' class it ends at t = 0, where alphas_cumprod is a little below 1, and clips nothing.
    """

    def step(self, noise_pred: Array, i: int, x: Array) -> Array:
        alpha_bar = self._alpha_bar(int(self.timesteps[i]))
        x_0, noise = self.schedule.split(noise_pred, x, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        self.pred_original_sample = x_0
        next_t = int(self.timesteps[i + 1]) if i + 1 < len(self.timesteps) else 0
        return noisy_latents(self._alpha_bar(next_t), x_0, noise)


SAMPLERS: dict[str, type[Sampler]] = {
    "ddim": DDIM,
    "pndm": PNDM,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "dpm++": DPMSolver,
    "lcm": LCM,
    "tcd": TCD,
}


def make_sampler(name: str, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> Sampler:
    """Raises RcdeployError for a name that is none of SAMPLERS, and for a number of steps that it cannot take."""
    if name not in SAMPLERS:
        raise RcdeployError(f"sampler is {name!r}, which is unknown", fix=f"Use one of: {', '.join(SAMPLERS)}.")
    return SAMPLERS[name](schedule, num_inference_steps, noise, skip)
