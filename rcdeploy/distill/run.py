"""A run: what one stage of training works with, and what a stage is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from .. import checkpoint
from ..diffusion_model import LatentDiffusionModel
from ..latent_cache import LatentCache
from ..progress import Log, no_log
from ..prompts.pool import PromptPool
from ..recipe import Recipe, Train, digest
from .batches import BatchMaker
from .features import FeatureTap
from .step import StudentWithProjectors
from .train_state import TrainState


class Objective(Protocol):
    """What a stage minimises."""

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of these samples of a step, and its parts by name (detached; "loss" is the whole)."""

    def validation_loss(self, unet: torch.nn.Module) -> float:
        """The loss of `unet`, the EMA student, on samples that stay the same over the run."""


class Stage(ABC):
    """What differs between the trainings of a student: where it begins, what it learns, how it is sampled."""

    name: str
    """in progress and logs"""
    section: str | None = None
    """the recipe's section that is the stage's own"""

    @abstractmethod
    def train(self, recipe: Recipe) -> Train:
        """How long and how it learns."""

    @abstractmethod
    def sampling(self, recipe: Recipe) -> SamplingDefaults:
        """How its student is sampled."""

    @abstractmethod
    def make_student(
        self, recipe: Recipe, teacher: LatentDiffusionModel
    ) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
        """-> student UNet with its first weights (fp32), its config, notes for a person."""

    @abstractmethod
    def make_objective(self, run: Run) -> Objective:
        """What the run minimises."""

    def schedule(self, teacher: LatentDiffusionModel) -> DDIMScheduler:
        """The noise schedule that its student's pipeline carries."""
        return teacher.schedule

    def timesteps(self, recipe: Recipe, teacher: LatentDiffusionModel) -> tuple[int, ...] | None:
        """The timesteps that training samples are drawn at; None for all."""
        return None

    def taps(self, recipe: Recipe, teacher: LatentDiffusionModel, student_config: dict[str, Any]) -> list[FeatureTap]:
        """The features that are compared."""
        return []

    def sources(self) -> dict[str, str]:
        """Digests of what it is made from, beside teacher, cache and pool."""
        return {}


@dataclass(frozen=True)
class Run:
    """The models, data and optimizer of a stage's training; its progress is a TrainState.

    train: the stage's. accumulation_steps: forward passes per update. schedule, sampling: of the student.
    student_config: of its UNet. wrapped: the model as accelerate wraps it (DDP, autocast).
    """

    recipe: Recipe
    stage: Stage
    train: Train
    sampling: SamplingDefaults
    folder: Path
    accelerator: Accelerator
    accumulation_steps: int
    teacher: LatentDiffusionModel
    schedule: DDIMScheduler
    cache: LatentCache
    pool: PromptPool
    batches: BatchMaker
    student_config: dict[str, Any]
    taps: list[FeatureTap]
    model: StudentWithProjectors
    wrapped: Any
    optimizer: Any
    ema: EMAModel

    @cached_property
    def objective(self) -> Objective:
        """What the training minimises."""
        return self.stage.make_objective(self)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self.accelerator.is_main_process)

    @property
    def sources(self) -> dict[str, str]:
        """Digests of what the run is made from."""
        return {
            "latent_cache": digest(self.cache.facts.identity),
            "prompt_pool": self.pool.digest,
            "teacher": self.teacher.revision,
            **self.stage.sources(),
        }

    def reduce(self, values: Tensor) -> Tensor:
        """Means over processes; a collective."""
        means: Tensor = self.accelerator.reduce(values, "mean")
        return means

    def save_checkpoint(self, state: TrainState) -> None:
        """Writes a checkpoint on the main process, while the others wait; keeps the last ones and the best."""
        self.accelerator.wait_for_everyone()
        sums = state.reduced_sums(self.reduce)
        if not self.is_main:
            return
        saved = state.as_json(sums, self.recipe.evaluate.score)
        checkpoint.save(self.folder, self.model, self.optimizer.optimizer, self.ema, self.accelerator.scaler, saved)
        checkpoint.prune(self.folder, self.train.keep_checkpoints, state.best[1] if state.best else None)

    def load_checkpoint(self, log: Log) -> TrainState:
        """Restores weights, optimizer and EMA of the newest whole checkpoint; a new state where there is none.

        Raises RcdeployError when all checkpoints are damaged.
        """
        step = checkpoint.newest_whole(self.folder, log if self.is_main else no_log)
        if step is None:
            return TrainState()
        saved = checkpoint.load(
            self.folder, step, self.model, self.optimizer.optimizer, self.ema, self.accelerator.scaler
        )
        return TrainState.from_json(saved, self.recipe.evaluate.score, self.accelerator.device)
