"""Samplers in numpy: from noise to latents, each on the trajectory of diffusers' class of the same name.

A sampler is made for one generation and one schedule. It has the timesteps to visit, `shown` (x as the UNet wants to
see it), `step` (the UNet's output at visit i -> the next x) and `noised` (where img2img begins). x is float32
[n, c, h, w]; coefficients are float64 numbers. Those that use fresh noise ask for it through `noise()`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array, NoiseSchedule

Noise = Callable[[], Array]


class Sampler(ABC):
    """What the samplers share.

    timesteps [visits]: descending. init_noise_sigma: what standard normal noise is multiplied with to begin.
    x_0: the last step's guess at the end of the way, for previews. skip: steps left out at the start (img2img).
    """

    spacing = "leading"
    """when the configuration does not name one; the same default as diffusers' class"""

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        if not 1 <= num_inference_steps <= len(schedule):
            raise RcdeployError(f"num_inference_steps is {num_inference_steps}: 1 to {len(schedule)} are possible")
        self.schedule, self.steps, self.noise = schedule, num_inference_steps, noise
        self.spacing = schedule.config.get("timestep_spacing", self.spacing)
        self.offset = int(schedule.config.get("steps_offset", 0))
        self.init_noise_sigma = 1.0
        self.timesteps = self._timesteps()[skip:]
        self.x_0: Array | None = None

    def _timesteps(self) -> Array:
        T, n = len(self.schedule), self.steps
        if self.spacing == "leading":
            return np.round(np.arange(n) * (T // n))[::-1].astype(np.int64) + self.offset
        if self.spacing == "trailing":
            return np.round(np.arange(T, 0, -T / n)).astype(np.int64) - 1
        return np.linspace(0, T - 1, n).round()[::-1].astype(np.int64)

    def _alpha_bar(self, t: int) -> float:
        """alphas_cumprod at t; below 0 that of the end of the way."""
        whole = bool(self.schedule.config.get("set_alpha_to_one", self._ends_at_one))
        return float(self.schedule.alphas_cumprod[t]) if t >= 0 else 1.0 if whole else float(self._first)

    _ends_at_one = True
    """diffusers' default of set_alpha_to_one in this class"""

    @property
    def _first(self) -> float:
        return float(self.schedule.alphas_cumprod[0])

    def _split(self, output: Array, x: Array, alpha_bar: float) -> tuple[Array, Array]:
        """(x_0, noise), x_0 clipped where the schedule says so (pixels are; SD's latents are not)."""
        x_0, noise = self.schedule.split(output, x, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        if self.schedule.config.get("clip_sample", False):
            edge = float(self.schedule.config.get("clip_sample_range", 1.0))
            x_0 = x_0.clip(-edge, edge)
        self.x_0 = x_0
        return x_0, noise

    def shown(self, x: Array, i: int) -> Array:
        return x

    @abstractmethod
    def step(self, output: Array, i: int, x: Array) -> Array:
        """The network's output at visit i, and x there -> x at the next visit."""

    def noised(self, x_0: Array, noise: Array, i: int) -> Array:
        """x at visit i of a picture's latents x_0."""
        alpha_bar = self._alpha_bar(int(self.timesteps[i]))
        return _mixed(alpha_bar, x_0, noise)


def _mixed(alpha_bar: float, x_0: Array, noise: Array) -> Array:
    """x_t where alphas_cumprod is alpha_bar."""
    x: Array = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise
    return x


class DDIM(Sampler):
    """Song et al. 2021, eta 0."""

    def step(self, output: Array, i: int, x: Array) -> Array:
        t = int(self.timesteps[i])
        before = self._alpha_bar(t - len(self.schedule) // self.steps)
        x_0, noise = self._split(output, x, self._alpha_bar(t))
        return _mixed(before, x_0, noise)


class PNDM(Sampler):
    """Liu et al. 2022 without its Runge-Kutta start (skip_prk_steps, as SD has it): multistep, steps + 1 visits."""

    _ends_at_one = False

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise, skip)
        plain = self.timesteps
        self.timesteps = np.concatenate([plain[:1], plain[1:2], plain[1:2], plain[2:]]) if len(plain) > 1 else plain
        self._outputs: list[Array] = []
        self._begun: Array | None = None

    def step(self, output: Array, i: int, x: Array) -> Array:
        t, stride = int(self.timesteps[i]), len(self.schedule) // self.steps
        before = t - stride
        if self._begun is not None:  # the second visit corrects the first step
            t, before = t + stride, t
            output, x, self._begun = (output + self._outputs[-1]) / 2, self._begun, None
            return self._moved(output, t, before, x)
        o = self._outputs = [*self._outputs[-3:], output]
        if len(o) == 1:
            self._begun = x
            mixed = output
        elif len(o) == 2:
            mixed = (3 * o[-1] - o[-2]) / 2
        elif len(o) == 3:
            mixed = (23 * o[-1] - 16 * o[-2] + 5 * o[-3]) / 12
        else:
            mixed = (55 * o[-1] - 59 * o[-2] + 37 * o[-3] - 9 * o[-4]) / 24
        return self._moved(mixed, t, before, x)

    def _moved(self, output: Array, t: int, before: int, x: Array) -> Array:
        """Equation 9 of the paper."""
        a, b = self._alpha_bar(t), self._alpha_bar(before)
        self.x_0, _ = self.schedule.split(output, x, a**0.5, (1 - a) ** 0.5)
        if self.schedule.prediction_type == "v_prediction":
            output = a**0.5 * output + (1 - a) ** 0.5 * x
        elif self.schedule.prediction_type == "sample":
            raise RcdeployError("the PNDM sampler wants a model that predicts epsilon or v", fix='Use sampler="ddim".')
        moved: Array = (b / a) ** 0.5 * x - (b - a) * output / (a * (1 - b) ** 0.5 + (a * (1 - a) * b) ** 0.5)
        return moved


class Euler(Sampler):
    """Karras et al. 2022, algorithm 2 without churn, on x = x_0 + sigma noise."""

    spacing = "linspace"

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise, skip)
        alphas = schedule.alphas_cumprod.copy()
        if schedule.config.get("rescale_betas_zero_snr"):
            alphas[-1] = 2.0**-24  # sigma must be finite
        sigmas = np.sqrt((1 - alphas) / alphas)
        here = np.interp(self.timesteps, np.arange(len(sigmas)), sigmas)
        self.sigmas = [float(s) for s in np.append(here, 0).astype(np.float32)]
        top = max(self.sigmas)
        self.init_noise_sigma = top if self.spacing != "leading" else (top**2 + 1) ** 0.5

    def _timesteps(self) -> Array:
        T, n = len(self.schedule), self.steps
        if self.spacing == "linspace":  # fractions stay
            return np.linspace(0, T - 1, n, dtype=np.float32)[::-1]
        return super()._timesteps()

    def shown(self, x: Array, i: int) -> Array:
        shown: Array = x / (self.sigmas[i] ** 2 + 1) ** 0.5
        return shown

    def _slope(self, output: Array, i: int, x: Array) -> Array:
        """dx/dsigma."""
        sigma = self.sigmas[i]
        norm = (sigma**2 + 1) ** 0.5
        x_0, _ = self.schedule.split(output, x / norm, 1 / norm, sigma / norm)
        self.x_0 = x_0
        return (x - x_0) / sigma

    def step(self, output: Array, i: int, x: Array) -> Array:
        return x + self._slope(output, i, x) * (self.sigmas[i + 1] - self.sigmas[i])

    def noised(self, x_0: Array, noise: Array, i: int) -> Array:
        return x_0 + self.sigmas[i] * noise


class EulerAncestral(Euler):
    """Euler down to a smaller sigma, then fresh noise up to the next (k-diffusion's, eta 1)."""

    def step(self, output: Array, i: int, x: Array) -> Array:
        here, to = self.sigmas[i], self.sigmas[i + 1]
        up = (to**2 * (here**2 - to**2) / here**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        # noise is drawn at the last step too, as diffusers does; it counts for nothing there
        moved: Array = x + self._slope(output, i, x) * (down - here) + self.noise() * up
        return moved


class DPMSolver(Sampler):
    """DPM-Solver++(2M), Lu et al. 2022: second order, midpoint, the last step of first order."""

    spacing = "linspace"

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> None:
        super().__init__(schedule, num_inference_steps, noise, skip)
        alphas = schedule.alphas_cumprod.copy()
        if schedule.config.get("rescale_betas_zero_snr"):
            alphas[-1] = 2.0**-24
        self._ratios = (
            np.append(np.sqrt((1 - alphas) / alphas)[self.timesteps], 0).astype(np.float32).astype(np.float64)
        )
        self._last: Array | None = None

    def _timesteps(self) -> Array:
        T, n = len(self.schedule), self.steps
        if self.spacing == "leading":
            return np.round(np.arange(n + 1) * (T // (n + 1)))[::-1][:-1].astype(np.int64) + self.offset
        if self.spacing == "trailing":
            return super()._timesteps()
        return np.linspace(0, T - 1, n + 1).round()[::-1][:-1].astype(np.int64)

    def _at(self, i: int) -> tuple[float, float, float]:
        """alpha, sigma, and half the log of the signal-to-noise ratio at visit i."""
        ratio = float(self._ratios[i])
        alpha = 1 / (ratio**2 + 1) ** 0.5
        return alpha, ratio * alpha, -math.log(ratio) if ratio else math.inf

    def step(self, output: Array, i: int, x: Array) -> Array:
        alpha, sigma, half_log = self._at(i)
        next_alpha, next_sigma, next_half_log = self._at(i + 1)
        x_0, _ = self.schedule.split(output, x, alpha, sigma)
        h = next_half_log - half_log
        gain = next_alpha * -math.expm1(-h)
        moved = next_sigma / sigma * x + gain * x_0
        if self._last is not None and i + 1 < len(self.timesteps):
            r = (half_log - self._at(i - 1)[2]) / h
            moved = moved + 0.5 * gain / r * (x_0 - self._last)
        self._last = self.x_0 = x_0
        return moved

    def noised(self, x_0: Array, noise: Array, i: int) -> Array:
        alpha, sigma, _ = self._at(i)
        return alpha * x_0 + sigma * noise


class LCM(Sampler):
    """Luo et al. 2023: for models distilled for consistency; few steps."""

    def _timesteps(self) -> Array:
        origin = int(self.schedule.config.get("original_inference_steps", 50))
        if self.steps > origin:
            raise RcdeployError(f"the LCM sampler takes at most {origin} steps, {self.steps} were asked for")
        every = (np.arange(1, origin + 1) * (len(self.schedule) // origin) - 1)[::-1]
        return every[np.floor(np.linspace(0, origin, self.steps, endpoint=False)).astype(np.int64)]

    def step(self, output: Array, i: int, x: Array) -> Array:
        t = int(self.timesteps[i])
        x_0, _ = self._split(output, x, self._alpha_bar(t))
        scaled = t * float(self.schedule.config.get("timestep_scaling", 10.0))
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5  # sigma_data = 0.5
        denoised: Array = out * x_0 + skip * x
        if i + 1 == len(self.timesteps):
            return denoised
        before = self._alpha_bar(int(self.timesteps[i + 1]))
        return _mixed(before, denoised, self.noise())


SAMPLERS: dict[str, type[Sampler]] = {
    "ddim": DDIM,
    "pndm": PNDM,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "dpm++": DPMSolver,
    "lcm": LCM,
}


def make_sampler(name: str, schedule: NoiseSchedule, num_inference_steps: int, noise: Noise, skip: int = 0) -> Sampler:
    """Raises RcdeployError for a name that is none of SAMPLERS."""
    if name not in SAMPLERS:
        raise RcdeployError(f"there is no sampler {name!r}", fix=f"One of: {', '.join(SAMPLERS)}.")
    return SAMPLERS[name](schedule, num_inference_steps, noise, skip)
