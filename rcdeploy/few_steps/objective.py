"""What a few-step student learns: one call takes the latents where a solver arrives in many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..condition import Condition, predict
from ..distill.batches import Batch
from ..distill.step import guided_prediction
from ..guidance import GuidanceScales, draw_scales, spread_scales
from ..random_streams import FEW_STEPS, VALIDATION, generator
from .leaps import Leaps, NoisePrediction

if TYPE_CHECKING:
    from ..distill.run import Run

VALIDATION_BATCH_SIZE = 32


class FewStepsObjective(ABC):
    """The distance between where the student arrives in one call and where it should; the methods differ in the latter.

    leaps: of the few-step student. solver: the distilled student; None for the teacher under guidance.
    """

    def __init__(self, run: Run, solver: UNet2DConditionModel | None) -> None:
        section = run.recipe.few_steps
        assert section is not None
        self.run = run
        self.section = section
        self.solver = solver
        self.leaps = Leaps.of(run.teacher.schedule, section.num_inference_steps)
        self._validation: list[tuple[Tensor, Tensor, Tensor, list[str]]] | None = None

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        run = self.run
        batch = run.batches.make(step, samples)
        starts = batch.timesteps
        rngs = [generator(run.train.seed, FEW_STEPS, step, i) for i in samples]
        scales = draw_scales(run.recipe.distill.guidance_scale, run.train.seed, step, samples)
        condition = self._student_condition(batch.condition, scales)
        latents = self._starting_latents(batch, condition, rngs)
        target = self._target(latents, starts, batch.condition, scales)
        output, _ = run.wrapped(latents, starts, condition.prompt_embeds, condition.added)
        arrived = self.leaps.move(output.float(), latents, starts, self.leaps.ends(starts))
        loss = self._distance(arrived, target).mean()
        return loss, {"loss": loss.detach()}

    def _student_condition(self, condition: Condition, scales: GuidanceScales | None) -> Condition:
        """The condition in the student's precision, with the guidance scales if it takes them."""
        return condition.to(self.run.teacher.device, torch.float32).with_guidance(scales, self.run.model.unet)

    def _starting_latents(self, batch: Batch, condition: Condition, rngs: list[np.random.Generator]) -> Tensor:
        """Pure noise for the first timestep, the batch's noised latents for the others. condition: the student's."""
        noise = _noise(batch, rngs)
        return torch.where((batch.timesteps == self.leaps.starts[0]).view(-1, 1, 1, 1), noise, batch.noisy_latents)

    @abstractmethod
    def _target(self, latents: Tensor, starts: Tensor, condition: Condition, scales: GuidanceScales | None) -> Tensor:
        """Where the leap of each row should end, without a gradient. condition: the teacher's."""

    def _distance(self, arrived: Tensor, target: Tensor) -> Tensor:
        """Squared or pseudo-Huber distance per element."""
        squared = (arrived - target).square()
        c = self.section.huber_c
        return squared if c is None else (squared + c * c).sqrt() - c

    def _states_from_noise(
        self, unet: torch.nn.Module, noise: Tensor, starts: Tensor, condition: Condition, rows: Tensor
    ) -> Tensor:
        """Where the student arrives at `starts` from `noise` [n, c, h, w]; only `rows` [n] (booleans) make steps."""
        states = noise.clone()
        for start in self.leaps.starts[:-1]:
            moving = (rows & (starts < start)).nonzero().flatten()
            if len(moving) == 0:
                break
            timesteps = torch.full_like(moving, start)
            output = predict(unet, states[moving], timesteps, condition.take(moving))
            states[moving] = self.leaps.move(output, states[moving], timesteps, self.leaps.ends(timesteps))
        return states

    def _solver_output(self, condition: Condition, scales: GuidanceScales | None) -> NoisePrediction:
        """The solver's UNet under guidance of these scales; None: of [evaluate]'s, since none is folded in."""
        teacher = self.run.teacher
        unet = teacher.unet if self.solver is None else self.solver
        if scales is None:
            scales = self.run.recipe.evaluate.guidance_scale
        elif self.solver is not None:
            condition, scales = condition.with_guidance(scales, unet), None
        null = self.run.batches.null

        def output(x: Tensor, timesteps: Tensor) -> Tensor:
            return guided_prediction(unet, x.to(teacher.dtype), timesteps, condition, null, scales).float()

        return output

    @torch.no_grad()
    def validation_loss(self, unet: torch.nn.Module) -> float:
        """The squared distance of x_0 from the solver's, both from the same noise, for prompts of the pool."""
        run = self.run
        if self._validation is None:
            self._validation = self._validation_batches()
        total = 0.0
        count = 0
        for noise, target, last, prompts in self._validation:
            scales = spread_scales(run.recipe.distill.guidance_scale, len(prompts))
            condition = self._student_condition(run.teacher.encode_prompts(prompts, noise.shape[2:]), scales)
            every_row = torch.ones(len(noise), dtype=torch.bool, device=noise.device)
            states = self._states_from_noise(unet, noise, last, condition, every_row)
            x_0 = self.leaps.move(predict(unet, states, last, condition), states, last, self.leaps.ends(last))
            total += (x_0 - target).square().mean().item() * len(noise)
            count += len(noise)
        return float(f"{total / count:.6g}")

    @torch.no_grad()
    def _validation_batches(self) -> list[tuple[Tensor, Tensor, Tensor, list[str]]]:
        """(noise, the solver's x_0, the last leap's start, prompts) of evaluate.validation_size samples."""
        run = self.run
        size = run.recipe.evaluate.validation_size
        rng = generator(run.recipe.evaluate.seed, VALIDATION)
        prompts = run.pool.draw(rng, size)
        noise = torch.from_numpy(rng.standard_normal((size, *run.cache.shape), "float32")).to(run.teacher.device)
        batches = []
        for first in range(0, size, VALIDATION_BATCH_SIZE):
            rows = slice(first, first + VALIDATION_BATCH_SIZE)
            condition = run.teacher.encode_prompts(prompts[rows], noise.shape[2:])
            scales = spread_scales(run.recipe.distill.guidance_scale, len(condition))
            x = noise[rows]
            for start in self.leaps.starts:
                starts = torch.full((len(x),), start, device=x.device)
                x = self.leaps.solve(self._solver_output(condition, scales), x, starts, self.section.solver_steps)
            batches.append((noise[rows], x, starts, prompts[rows]))
        return batches


class LeapObjective(FewStepsObjective):
    """The student arrives where a solver arrives in many small steps (progressive distillation, Salimans & Ho 2022,
    without its halvings: the solver is the teacher itself, or the distilled student).

    A leap begins at pure noise (the first one), at a noised latent of the cache with random conditioning, or where the
    student itself arrives from noise: what it will meet when it is sampled.
    """

    @torch.no_grad()
    def _starting_latents(self, batch: Batch, condition: Condition, rngs: list[np.random.Generator]) -> Tensor:
        latents, starts = batch.noisy_latents, batch.timesteps
        noise = _noise(batch, rngs)
        own = torch.tensor([rng.random() < self.section.own_states for rng in rngs], device=latents.device)
        states = self._states_from_noise(self.run.model.unet, noise, starts, condition, own)
        return torch.where(((starts == self.leaps.starts[0]) | own).view(-1, 1, 1, 1), states, latents)

    @torch.no_grad()
    def _target(self, latents: Tensor, starts: Tensor, condition: Condition, scales: GuidanceScales | None) -> Tensor:
        return self.leaps.solve(self._solver_output(condition, scales), latents, starts, self.section.solver_steps)


class ConsistencyObjective(FewStepsObjective):
    """The student arrives where it arrives itself from one solver step further on: consistency distillation (Song et
    al. 2023; in latents with guidance and skipped timesteps LCM, Luo et al. 2023), in phases that end where a leap ends
    (Wang et al. 2024), so that it is sampled by DDIM.

    A DDIM step to where it begins moves nothing, so the boundary condition holds by itself, without LCM's scalings
    (Kim et al. 2024). The target's weights are the student's own, not an average (Song & Dhariwal 2024, section 3.2).
    """

    @torch.no_grad()
    def _target(self, latents: Tensor, starts: Tensor, condition: Condition, scales: GuidanceScales | None) -> Tensor:
        leaps = self.leaps
        ends = leaps.ends(starts)
        nearer = self._next(starts)
        latents = leaps.move(self._solver_output(condition, scales)(latents, starts), latents, starts, nearer)
        rows = (nearer > ends).nonzero().flatten()  # the others have arrived
        if len(rows):
            own = self._student_condition(condition, scales).take(rows)
            output = predict(self.run.model.unet, latents[rows], nearer[rows], own)
            latents[rows] = leaps.move(output, latents[rows], nearer[rows], ends[rows])
        return latents

    def _next(self, timesteps: Tensor) -> Tensor:
        """The timestep after each of `timesteps` on the solver's grid; -1 after the last."""
        grid = torch.tensor([*self.leaps.grid(self.section.solver_steps), -1], device=timesteps.device)
        return grid[(grid == timesteps.view(-1, 1)).int().argmax(1) + 1]


def _noise(batch: Batch, rngs: list[np.random.Generator]) -> Tensor:
    noise = [torch.from_numpy(rng.standard_normal(batch.noisy_latents.shape[1:], "float32")) for rng in rngs]
    return torch.stack(noise).to(batch.noisy_latents.device)
