"""Puts a run together from a recipe: teacher, student, latent cache, prompt pool, optimizer."""

from __future__ import annotations

import math
import os
import shutil
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import NAME, Manifest

from .. import cache_latents
from ..conditioning import RandomConditioning
from ..diffusion_model import LatentDiffusionModel
from ..progress import Log, Progress, no_log
from ..prompts.recipe_pool import open_pool, paired_sources
from ..recipe import Recipe, Train
from ..recipe import Teacher as TeacherSection
from ..run_folder import check_sources
from .batches import BatchMaker
from .run import Run, Stage
from .step import StudentWithProjectors, make_ema, make_optimizer

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_run(recipe: Recipe, folder: Path, progress: Progress, log: Log, stage: Stage) -> Run:
    """Loads the teacher, fills the cache, opens the pool, builds the stage's student and optimizer.

    Raises RcdeployError for everything that cannot be used, and for other sources than the folder's run was made of.
    """
    train = stage.train(recipe)
    if train.compile:
        check_compiler()
    accelerator = make_accelerator(train, folder)
    accumulation = accumulation_steps(train, accelerator.num_processes)
    if not accelerator.is_main_process:
        log = no_log
    if train.mixed_precision == "fp16" and accelerator.mixed_precision == "no":
        log("no GPU: training in fp32 instead of fp16")
    teacher = load_teacher(recipe.teacher, accelerator)
    resumed = (folder / NAME).is_file()
    if resumed:
        check_sources(Manifest.read(folder, "run"), {"teacher": teacher.revision})
    # quick work first: sampling the latents may take hours, and errors should show before
    teacher.load("unet", "text_encoder")
    unet, config, notes = stage.make_student(recipe, teacher)
    paired = paired_sources(recipe, log)
    cache_folder = cache_latents.prepare(recipe, teacher, paired, log)
    pool = open_pool(recipe, log)
    cache = cache_latents.fill(cache_folder, recipe.cache, teacher, progress, log)
    for note in notes:
        log(note)
    taps = stage.taps(recipe, teacher, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.student.seed)  # of the projectors
        model = StudentWithProjectors(unet, taps, gradient_checkpointing=train.gradient_checkpointing)
    model.train()
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, train))
    ema = make_ema(model, train)
    conditioning = RandomConditioning.from_recipe(
        recipe.conditioning,
        rows=len(cache),
        pool_size=len(pool),
        num_train_timesteps=int(teacher.schedule.config.num_train_timesteps),
        seed=train.seed,
        timesteps=stage.timesteps(recipe, teacher),
    )
    batches = BatchMaker(
        teacher,
        cache,
        pool,
        conditioning,
        text_cache_bytes=train.text_cache_gb * 1e9,
        task_target=recipe.loss.task > 0,
    )
    run = Run(
        recipe=recipe,
        stage=stage,
        train=train,
        sampling=stage.sampling(recipe),
        folder=folder,
        accelerator=accelerator,
        accumulation_steps=accumulation,
        teacher=teacher,
        schedule=stage.schedule(teacher),
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


def check_compiler() -> None:
    """Raises RcdeployError where torch.compile has neither a GPU nor a C++ compiler."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in names if name):
        raise RcdeployError(
            "train.compile: there is no C++ compiler, which torch.compile needs without a GPU",
            fix="Install g++, or leave train.compile out.",
        )


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
