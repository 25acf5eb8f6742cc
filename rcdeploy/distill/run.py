"""A run: everything that one distillation works with, put together from a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from diffusers.training_utils import EMAModel

from rcdeploy_runtime.manifest import NAME, Manifest

from .. import checkpoint, latent_cache
from ..conditioning import RandomConditioning, recipe_probability
from ..diffusion_model import LatentDiffusionModel
from ..progress import Progress
from ..prompts.pool import PromptPool
from ..prompts.recipe_pool import open_pool
from ..recipe import Recipe, digest
from ..run_folder import Metrics, check_sources, check_unchanged
from ..student.build import build_student
from ..student.init import initialise
from ..student.spec import student_config
from .features import Tap, taps
from .step import Batches, StudentWithProjectors


@dataclass
class Run:
    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    teacher: LatentDiffusionModel
    cache: latent_cache.LatentCache
    pool: PromptPool
    student_config: dict[str, Any]
    taps: list[Tap]
    model: StudentWithProjectors
    wrapped: Any
    """the model as accelerate wraps it (DDP)"""
    optimizer: Any
    ema: EMAModel
    step: int = 0
    """updates done"""
    best: tuple[float, int] | None = None
    """the best value of evaluate.score, and its step"""
    lowest_loss: float = float("inf")
    latest: dict[str, float] = field(default_factory=dict)
    """the last logged figures"""
    metrics: Metrics | None = None
    """on the main process"""
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """of the losses and the gradient norm over the steps after `since`, the last logged one"""
    since: int = 0
    drawn: dict[str, Any] = field(default_factory=dict)
    """the teacher's pictures and the validation batch, made once"""

    @property
    def sources(self) -> dict[str, str]:
        """Digests of what the run is made from."""
        cache = digest(self.cache.manifest.facts["identity"])
        return {"latent_cache": cache, "prompt_pool": self.pool.digest, "teacher": self.teacher.revision}

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def mean_sums(self) -> dict[str, float]:
        """The sums, as means over processes; every process must ask."""
        if not self.sums:
            return {}
        stacked = self.accelerator.reduce(torch.stack([v.float() for v in self.sums.values()]), "mean")
        return dict(zip(self.sums, stacked.tolist(), strict=True))

    def save_checkpoint(self) -> None:
        """On the main process; the others wait. Keeps the last ones and the best."""
        self.accelerator.wait_for_everyone()
        sums = self.mean_sums()
        if self.is_main:
            state: dict[str, Any] = {"step": self.step, "best": self.best, "lowest_loss": self.lowest_loss}
            state |= {"since": self.since, "sums": sums, "score": self.recipe.evaluate.score}
            checkpoint.save(self.folder, self.model, self.optimizer.optimizer, self.ema, self.accelerator.scaler, state)
            checkpoint.prune(self.folder, self.recipe.train.keep_checkpoints, self.best[1] if self.best else None)

    def load_checkpoint(self) -> bool:
        """From the newest one, if there is any."""
        steps = checkpoint.steps_of(self.folder)
        if not steps:
            return False
        state = checkpoint.load(
            self.folder, steps[-1], self.model, self.optimizer.optimizer, self.ema, self.accelerator.scaler
        )
        self.step, self.lowest_loss = state["step"], state["lowest_loss"]
        # what was best by another score is not comparable
        same = state.get("score", "validation") == self.recipe.evaluate.score
        self.best = tuple(state["best"]) if state["best"] and same else None
        self.since = state["since"]
        self.sums = {name: torch.tensor(v, device=self.accelerator.device) for name, v in state["sums"].items()}
        return True


def build_run(recipe: Recipe, folder: Path, progress: Progress, say: Callable[[str], None]) -> Run:
    """Teacher, cache (made if it is not there), pool, student, optimizer; goes back to the newest checkpoint."""
    check_unchanged(folder, recipe)
    accelerator = make_accelerator(recipe, folder)
    recipe.train.accumulation(accelerator.num_processes)  # refuse before anything is made
    tell = say if accelerator.is_main_process else _silent
    if recipe.train.mixed_precision == "fp16" and accelerator.mixed_precision == "no":
        tell("no GPU here: training in fp32 instead of fp16")
    teacher = make_teacher(recipe, accelerator)
    if (folder / NAME).is_file():
        check_sources(Manifest.read(folder, "run"), {"teacher": teacher.revision})
    # what is quick comes first: the latents may take hours, and what is wrong should be said before
    teacher.load("unet", "text_encoder")
    unet, config, notes = make_student(recipe, teacher)
    latent_cache.prepare(recipe, teacher)
    pool = open_pool(recipe, tell)
    cache = latent_cache.fill(recipe, teacher, lambda done, of: progress("latent cache", done, of, {}), tell)
    for note in notes:
        tell(note)
    compared = taps(teacher.unet_config, config) if recipe.loss.feature else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.student.seed)  # of the projectors
        model = StudentWithProjectors(unet, compared, gradient_checkpointing=recipe.train.gradient_checkpointing)
    model.train()
    train = recipe.train
    adamw = torch.optim.AdamW(
        model.parameters(),
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_eps,
        weight_decay=train.weight_decay,
        fused=True,  # one pass over the weights instead of a dozen
    )
    wrapped, optimizer = accelerator.prepare(model, adamw)
    ema = EMAModel(model.unet.parameters(), decay=train.ema_decay, foreach=True)
    run = Run(recipe, folder, accelerator, teacher, cache, pool, config, compared, model, wrapped, optimizer, ema)
    if (folder / NAME).is_file():
        check_sources(Manifest.read(folder, "run"), run.sources)
    if run.load_checkpoint():
        tell(f"going on from step {run.step:,}")
    accelerator.wait_for_everyone()
    return run


def _silent(_text: str) -> None:
    """What processes other than the main one say."""


def make_accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    """fp16 needs a GPU: without one the run is in fp32."""
    precision = recipe.train.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        precision = "no"
    return Accelerator(
        mixed_precision=precision,
        log_with=list(recipe.train.trackers) or None,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=3))],
    )


def make_teacher(recipe: Recipe, accelerator: Accelerator) -> LatentDiffusionModel:
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype = dtypes[accelerator.mixed_precision]
    return LatentDiffusionModel(recipe.teacher.path, revision=recipe.teacher.revision, dtype=dtype).to(
        accelerator.device
    )


def make_student(recipe: Recipe, teacher: LatentDiffusionModel) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
    """-> student UNet with its first weights (fp32), its config, notes for a person."""
    wanted = recipe.student
    config, notes = student_config(wanted.spec, teacher.unet_config)
    unet = build_student(config, wanted.seed)
    if wanted.first_weights != "random":
        initialise(unet, teacher.unet, wanted.first_weights, wanted.seed)
    return unet, config, notes


def make_batches(run: Run) -> Batches:
    c = run.recipe.conditioning
    conditioning = RandomConditioning(
        p=recipe_probability(c),
        rows=len(run.cache),
        pool_size=len(run.pool),
        num_train_timesteps=int(run.teacher.schedule.config.num_train_timesteps),
        null_probability=c.null_probability,
        seed=run.recipe.train.seed,
    )
    text_cache_bytes = run.recipe.train.text_cache_gb * 1e9
    return Batches(run.teacher, run.cache, run.pool, conditioning, text_cache_bytes=text_cache_bytes)
