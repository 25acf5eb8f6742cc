"""The stage [few_steps]: from a distilled student to one that needs a few calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from ..diffusion_model import LatentDiffusionModel
from ..distill.loop import distill
from ..distill.run import Objective, Run, Stage
from ..distill.train_state import TrainState
from ..progress import Log, Progress
from ..recipe import Recipe, Train
from ..student.build import load_unet
from .leaps import Leaps
from .objective import ConsistencyObjective, LeapObjective

FOLDER = "few_steps"
OBJECTIVES = {"leaps": LeapObjective, "consistency": ConsistencyObjective}


def train_few_steps(recipe: Recipe, folder: Path, progress: Progress, log: Log) -> TrainState:
    """Trains the few-step student of the run that `folder` lies in (runs/NAME/few_steps), or continues there.

    Raises RcdeployError when the run has no student yet, for other bad input, and as `distill` does.
    """
    return distill(recipe, folder, progress, log, FewStepsStage(folder.parent))


class FewStepsStage(Stage):
    """Begins with the distilled student of a finished run and learns to leap."""

    name = "few steps"
    section = "few_steps"

    def __init__(self, source: Path) -> None:
        """source: the run folder of the distilled student. Raises RcdeployError when it has none."""
        self.weights = source / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
        if not (source / NAME).is_file() or not self.weights.is_file():
            raise RcdeployError(
                f"{source} has no distilled student for the few steps to begin with",
                fix="Run rcdeploy distill with the same recipe first (rcdeploy build does both).",
            )
        self.source = Manifest.read(source, "run")

    def train(self, recipe: Recipe) -> Train:
        section = recipe.few_steps
        assert section is not None
        keys = ("max_steps", "learning_rate", "lr_schedule", "warmup_steps", "ema_decay")
        return recipe.train.model_copy(update={key: getattr(section, key) for key in keys})

    def sampling(self, recipe: Recipe) -> SamplingDefaults:
        assert recipe.few_steps is not None
        return SamplingDefaults(
            num_inference_steps=recipe.few_steps.num_inference_steps,
            guidance_scale=recipe.evaluate.guidance_scale if recipe.distill.takes_guidance_scale else 1.0,
        )

    def schedule(self, teacher: LatentDiffusionModel) -> DDIMScheduler:
        """The teacher's with trailing spacing: its first timestep is the last of training, pure noise."""
        return DDIMScheduler.from_config(teacher.schedule.config, timestep_spacing="trailing")

    def timesteps(self, recipe: Recipe, teacher: LatentDiffusionModel) -> tuple[int, ...]:
        section = recipe.few_steps
        assert section is not None
        leaps = Leaps.of(teacher.schedule, section.num_inference_steps)
        return leaps.starts if section.method == "leaps" else leaps.grid(section.solver_steps)

    def sources(self) -> dict[str, str]:
        return {"distilled_student": sha256(self.weights)}

    def make_student(
        self, recipe: Recipe, teacher: LatentDiffusionModel
    ) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
        """The source's EMA weights. Raises RcdeployError when they are of another teacher."""
        if self.source.teacher.get("revision") != teacher.revision:
            raise RcdeployError(
                f"the distilled student in {self.weights.parents[2]} is of another teacher than the recipe's",
                fix="Distil it again with this recipe.",
            )
        unet = self._distilled()
        return unet, dict(unet.config), []

    def _distilled(self) -> UNet2DConditionModel:
        return load_unet(self.weights.parent)

    def make_objective(self, run: Run) -> Objective:
        section = run.recipe.few_steps
        assert section is not None
        solver = None
        if section.solver == "student":
            solver = self._distilled().requires_grad_(False).eval().to(run.teacher.device, run.teacher.dtype)
        return OBJECTIVES[section.method](run, solver)
