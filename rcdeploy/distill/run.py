"""A run: what one distillation works with, put together from a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from diffusers.training_utils import EMAModel
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import NAME, Manifest

from .. import cache_latents, checkpoint
from ..conditioning import RandomConditioning
from ..diffusion_model import LatentDiffusionModel
from ..latent_cache import LatentCache
from ..progress import Log, Progress, no_log
from ..prompts.pool import PromptPool
from ..prompts.recipe_pool import open_pool, paired_sources
from ..recipe import Recipe, Student, Train, digest
from ..recipe import Teacher as TeacherSection
from ..run_folder import check_sources
from ..student.build import build_student
from ..student.init import initialise
from ..student.spec import student_config
from .batches import BatchMaker
from .features import FeatureTap, feature_taps
from .step import StudentWithProjectors, make_ema, make_optimizer
from .train_state import TrainState

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Run:
    """The models, data and optimizer of a distillation; its progress is a TrainState.

    accumulation_steps: forward passes per update. student_config: of its UNet. wrapped: the model as accelerate wraps
    it (DDP, autocast).
    """

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    accumulation_steps: int
    teacher: LatentDiffusionModel
    cache: LatentCache
    pool: PromptPool
    batches: BatchMaker
    student_config: dict[str, Any]
    taps: list[FeatureTap]
    model: StudentWithProjectors
    wrapped: Any
    optimizer: Any
    ema: EMAModel

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
        checkpoint.prune(self.folder, self.recipe.train.keep_checkpoints, state.best[1] if state.best else None)

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


def build_run(recipe: Recipe, folder: Path, progress: Progress, log: Log) -> Run:
    """Loads the teacher, fills the cache, opens the pool, builds student and optimizer.

    Raises RcdeployError for everything that cannot be used, and for other sources than the folder's run was made of.
    """
    accelerator = make_accelerator(recipe.train, folder)
    accumulation = accumulation_steps(recipe.train, accelerator.num_processes)
    if not accelerator.is_main_process:
        log = no_log
    if recipe.train.mixed_precision == "fp16" and accelerator.mixed_precision == "no":
        log("no GPU: training in fp32 instead of fp16")
    teacher = load_teacher(recipe.teacher, accelerator)
    resumed = (folder / NAME).is_file()
    if resumed:
        check_sources(Manifest.read(folder, "run"), {"teacher": teacher.revision})
    # quick work first: sampling the latents may take hours, and errors should show before
    teacher.load("unet", "text_encoder")
    unet, config, notes = make_student(recipe.student, teacher)
    paired = paired_sources(recipe, log)
    cache_folder = cache_latents.prepare(recipe, teacher, paired, log)
    pool = open_pool(recipe, log)
    cache = cache_latents.fill(cache_folder, recipe.cache, teacher, progress, log)
    for note in notes:
        log(note)
    taps = feature_taps(teacher.unet_config, config) if recipe.loss.feature else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.student.seed)  # of the projectors
        model = StudentWithProjectors(unet, taps, gradient_checkpointing=recipe.train.gradient_checkpointing)
    model.train()
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, recipe.train))
    ema = make_ema(model, recipe.train)
    conditioning = RandomConditioning.from_recipe(
        recipe.conditioning,
        rows=len(cache),
        pool_size=len(pool),
        num_train_timesteps=int(teacher.schedule.config.num_train_timesteps),
        seed=recipe.train.seed,
    )
    batches = BatchMaker(
        teacher,
        cache,
        pool,
        conditioning,
        text_cache_bytes=recipe.train.text_cache_gb * 1e9,
        task_target=recipe.loss.task > 0,
    )
    run = Run(
        recipe=recipe,
        folder=folder,
        accelerator=accelerator,
        accumulation_steps=accumulation,
        teacher=teacher,
        cache=cache,
        pool=pool,
        batches=batches,
        student_config=config,
        taps=taps,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        ema=ema,
    )
    if resumed:
        check_sources(Manifest.read(folder, "run"), run.sources)
    return run


def make_accelerator(train: Train, folder: Path) -> Accelerator:
    """fp16 needs a GPU: without one the run is in fp32."""
    precision = train.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        precision = "no"
    return Accelerator(
        mixed_precision=precision,
        log_with=list(train.trackers) or None,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=3))],
    )


def accumulation_steps(train: Train, num_processes: int) -> int:
    """gradient_accumulation_steps = global_batch_size / (micro_batch_size x num_processes).

    Raises RcdeployError when that is not a whole number.
    """
    micro_batch_size = train.micro_batch_size or math.ceil(train.global_batch_size / num_processes)
    steps, remainder = divmod(train.global_batch_size, micro_batch_size * num_processes)
    if remainder or not steps:
        raise RcdeployError(
            f"train.global_batch_size = {train.global_batch_size} is not a multiple of micro_batch_size x processes = "
            f"{micro_batch_size} x {num_processes}",
            fix="Change one of the three.",
        )
    return steps


def load_teacher(section: TeacherSection, accelerator: Accelerator) -> LatentDiffusionModel:
    """The teacher on the accelerator's device, in the precision of its mixed precision."""
    dtype = DTYPES[accelerator.mixed_precision]
    return LatentDiffusionModel(section.path, revision=section.revision, dtype=dtype).to(accelerator.device)


def make_student(section: Student, teacher: LatentDiffusionModel) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
    """-> student UNet with its initial weights (fp32), its config, notes for a person."""
    config, notes = student_config(section.spec, teacher.unet_config)
    unet = build_student(config, section.seed)
    if section.first_weights != "random":
        initialise(unet, teacher.unet, section.first_weights)
    return unet, config, notes
