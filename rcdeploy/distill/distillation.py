"""The paper's stage of training: distillation of a student with random conditioning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from ..condition import predict
from ..diffusion_model import LatentDiffusionModel
from ..guidance import draw_scales, spread_scales
from ..random_streams import VALIDATION, generator
from ..recipe import Recipe, Train
from ..recipe_student import Student
from ..student.build import build_student
from ..student.init import initialise
from ..student.spec import StudentSpec, student_config
from .features import FeatureRecorder, FeatureTap, feature_taps
from .losses import output_loss
from .run import Objective, Run, Stage
from .step import distillation_loss, guided_prediction

VALIDATION_BATCH_SIZE = 16


class Distillation(Stage):
    """The paper's training: the student learns the teacher's output and features."""

    name = "distill"

    def train(self, recipe: Recipe) -> Train:
        return recipe.train

    def sampling(self, recipe: Recipe) -> SamplingDefaults:
        return recipe.student_sampling

    def make_student(
        self, recipe: Recipe, teacher: LatentDiffusionModel
    ) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
        return make_student(recipe.student, teacher, recipe.student_spec)

    def taps(self, recipe: Recipe, teacher: LatentDiffusionModel, student_config: dict[str, Any]) -> list[FeatureTap]:
        needed = recipe.loss.feature or recipe.loss.frequency
        taps = feature_taps(teacher.unet_config, student_config) if needed else []
        if recipe.loss.frequency and any(tap.student.endswith("attn1") for tap in taps):
            raise RcdeployError(
                "loss.frequency compares maps, and KOALA students are compared at self-attentions, which are none",
                fix="Set loss.frequency = 0.",
            )
        return taps

    def make_objective(self, run: Run) -> Objective:
        return DistillationObjective(run)


def make_student(
    section: Student, teacher: LatentDiffusionModel, spec: StudentSpec | None = None
) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
    """-> student UNet with its initial weights (fp32), its config, notes. spec: by default the section's."""
    config, notes = student_config(spec or section.spec, teacher.unet_config)
    unet = build_student(config, section.seed)
    if section.first_weights != "random":
        initialise(unet, teacher.unet, section.first_weights)
    return unet, config, notes


class DistillationObjective:
    """Equations 1 and 2, task and frequency loss, on batches with random conditioning."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.teacher_features = FeatureRecorder(run.teacher.unet, [tap.teacher for tap in run.taps])
        self._validation_batches: list[tuple[Tensor, Tensor, list[str]]] | None = None
        if run.train.compile:
            for network in (run.teacher.unet, run.model.unet):
                network.compile(dynamic=False)  # in place: names of weights stay, and hooks are compiled, too

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        run = self.run
        batch = run.batches.make(step, samples)
        # the prepared model casts by itself; the teacher's weights are in their own precision already
        return distillation_loss(
            run.wrapped,
            run.teacher.unet,
            self.teacher_features,
            batch,
            run.recipe.loss,
            draw_scales(run.recipe.distill.guidance_scale, run.train.seed, step, samples),
            run.model.unet,
        )

    @torch.no_grad()
    def validation_loss(self, unet: torch.nn.Module) -> float:
        """Equation 1 on fixed noisy latents, each with a random prompt of the pool (the harder case)."""
        if self._validation_batches is None:
            self._validation_batches = _validation_batches(self.run)
        teacher = self.run.teacher
        null = self.run.batches.null
        total = 0.0
        count = 0
        for noisy_latents, timesteps, prompts in self._validation_batches:
            scale = spread_scales(self.run.recipe.distill.guidance_scale, len(prompts))
            condition = teacher.encode_prompts(prompts, noisy_latents.shape[2:])
            teacher_output = guided_prediction(
                teacher.unet, noisy_latents.to(teacher.dtype), timesteps, condition, null, scale
            )
            condition = condition.to(noisy_latents.device, torch.float32).with_guidance(scale, unet)
            student_output = predict(unet, noisy_latents, timesteps, condition)
            total += output_loss(teacher_output, student_output).item() * len(prompts)
            count += len(prompts)
        return float(f"{total / count:.6g}")


def _validation_batches(run: Run) -> list[tuple[Tensor, Tensor, list[str]]]:
    """(noisy latents, timesteps, prompts) of evaluate.validation_size samples, timesteps evenly over the schedule."""
    size = run.recipe.evaluate.validation_size
    schedule = run.teacher.schedule
    rng = generator(run.recipe.evaluate.seed, VALIDATION)
    rows = rng.integers(len(run.cache), size=size).tolist()
    prompts = run.pool.draw(rng, size)
    timesteps = torch.arange(size) * int(schedule.config.num_train_timesteps) // size
    x_0 = run.cache.latents(rows)
    noise = torch.from_numpy(rng.standard_normal(x_0.shape, "float32"))
    noisy_latents = schedule.add_noise(x_0, noise, timesteps)
    device = run.teacher.device
    batches = [slice(i, i + VALIDATION_BATCH_SIZE) for i in range(0, size, VALIDATION_BATCH_SIZE)]
    return [(noisy_latents[b].to(device), timesteps[b].to(device), prompts[b]) for b in batches]
