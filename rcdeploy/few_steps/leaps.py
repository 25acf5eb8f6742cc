"""Leaps along a DDIM trajectory: where each of a student's N steps begins and ends, and a solver's small steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

from ..sampling import check_signal

NoisePrediction = Callable[[Tensor, Tensor], Tensor]
"""(latents [n, c, h, w], timesteps [n]) -> the raw output of a UNet under its condition, shaped like the latents"""


@dataclass(frozen=True)
class Leaps:
    """The N leaps from noise to x_0, at the timesteps that DDIM visits with trailing spacing.

    starts: N timesteps, descending, from T - 1. alphas_cumprod: [T + 1], the last one at the end of the trajectory
    (timestep -1).
    """

    starts: tuple[int, ...]
    stride: int
    alphas_cumprod: Tensor
    prediction_type: str

    @classmethod
    def of(cls, schedule: DDIMScheduler, num_inference_steps: int) -> Leaps:
        """num_inference_steps: N. Raises RcdeployError when it does not divide the schedule's timesteps, and when the
        model predicts epsilon where the first leap begins, at zero SNR."""
        T = int(schedule.config.num_train_timesteps)
        if T % num_inference_steps:
            divisors = [str(n) for n in range(1, 11) if T % n == 0]
            raise RcdeployError(
                f"few_steps.num_inference_steps: {num_inference_steps} does not divide the teacher's {T:,} timesteps",
                fix=f"Use {', '.join(divisors[:-1])} or {divisors[-1]}.",
            )
        check_signal(schedule, T - 1)
        stride = T // num_inference_steps
        alphas_cumprod = torch.cat([schedule.alphas_cumprod, schedule.final_alpha_cumprod.reshape(1)]).float()
        return cls(
            starts=tuple(T - 1 - k * stride for k in range(num_inference_steps)),
            stride=stride,
            alphas_cumprod=alphas_cumprod,
            prediction_type=str(schedule.config.prediction_type),
        )

    def ends(self, timesteps: Tensor) -> Tensor:
        """The timestep at which the leap that each of `timesteps` [n] lies on ends; -1 is x_0."""
        return timesteps - timesteps % self.stride - 1

    def grid(self, solver_steps: int) -> tuple[int, ...]:
        """The timesteps, descending, that a solver of so many DDIM steps a leap visits. Raises RcdeployError when the
        leap has fewer timesteps."""
        if solver_steps > self.stride:
            raise RcdeployError(
                f"few_steps.solver_steps: {solver_steps} steps do not fit into a leap over {self.stride} timesteps",
                fix=f"Use {self.stride} at most.",
            )
        return tuple(start - k * self.stride // solver_steps for start in self.starts for k in range(solver_steps))

    def move(self, output: Tensor, latents: Tensor, timesteps: Tensor, next_timesteps: Tensor) -> Tensor:
        """One DDIM step (eta 0) of each row to its own next timestep.

        Args:
            output: of the UNet at `latents`, both [n, c, h, w].
            timesteps, next_timesteps: [n]; -1 is the end of the trajectory.
        """
        signal, noise = self._scales(timesteps, latents)
        next_signal, next_noise = self._scales(next_timesteps, latents)
        if self.prediction_type == "v_prediction":
            x_0 = signal * latents - noise * output
            epsilon = noise * latents + signal * output
        else:
            x_0 = (latents - noise * output) / signal
            epsilon = output
        return next_signal * x_0 + next_noise * epsilon

    def solve(self, predict: NoisePrediction, latents: Tensor, starts: Tensor, solver_steps: int) -> Tensor:
        """The latents at the end of each row's leap, by `solver_steps` DDIM steps of `predict`."""
        timesteps = starts
        for k in range(solver_steps):
            next_timesteps = starts - (k + 1) * self.stride // solver_steps
            latents = self.move(predict(latents, timesteps), latents, timesteps, next_timesteps)
            timesteps = next_timesteps
        return latents

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of each row, [n, 1, 1, 1]."""
        alphas_cumprod = self.alphas_cumprod.to(like.device)[timesteps].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
