"""Evaluation of the EMA student while it trains: validation loss, sample images, and scores of generated images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

from ..evaluate.clip_score import clip_folder
from ..evaluate.evaluation import evaluate, generate_images
from ..evaluate.image_set import open_image_set
from ..evaluate.image_source import sampler
from ..evaluate.metrics import open_scorer
from ..evaluate.prompt_choice import choose_prompts
from ..evaluate.spec import DEFAULT_CLIP, SCORE_KEYS, EvaluationSpec, is_better
from ..judge_files import judge_of
from ..plots import grid, loss_curves
from ..progress import Log, Progress
from ..random_streams import GRID, generator
from ..recipe import Recipe
from ..run_folder import MetricsFile
from ..sampling import sample_images, starting_noise
from .pipeline import ema_weights, plain_copy
from .run import Run
from .train_state import TrainState

GRID_COLUMNS = 8
SCORE_METRICS = {"fid": ("fid", "is"), "clip": ("clip",), "judge": ("judge",)}
"""The metrics that are computed for each value of evaluate.score."""
SCORE_SHARD_SIZE = 256


def check_score_weights(recipe: Recipe) -> None:
    """Fetches the CLIP model of evaluate.score = "clip". Raises RcdeployError when it is not there, or is none.

    Before the latent cache is filled, which may take days.
    """
    section = recipe.evaluate
    if section.every and section.score == "clip":
        try:
            clip_folder(Path(section.clip or DEFAULT_CLIP))
        except RcdeployError as error:
            fix = f"{error.fix} That is evaluate.clip; without CLIP: evaluate.score = 'validation'."
            raise RcdeployError(f"evaluate.score = 'clip': {error.message}", fix=fix) from error


class Validator:
    """Evaluates the EMA weights of a run; what stays the same between evaluations is made once."""

    def __init__(self, run: Run, metrics_file: MetricsFile | None, progress: Progress, log: Log) -> None:
        """metrics_file: on the main process. Raises RcdeployError when prompts or weights of the score are unusable."""
        self.run = run
        self.metrics_file = metrics_file
        self._scoring = None
        if run.recipe.evaluate.every and run.recipe.evaluate.score != "validation":
            self._scoring = Scoring.open(run, progress, log)
        self._teacher_images: Tensor | None = None

    def evaluate(self, state: TrainState) -> None:
        """Computes metrics, writes the sample grid and the loss curves, and updates `state.best`.

        A collective: all processes generate the images that are scored, the main one does the rest.
        """
        run = self.run
        scores: dict[str, float] = {}
        with ema_weights(run) as unet:
            if self._scoring is not None:
                scores = self._scoring(run, state.step, _in_teacher_dtype(run, unet))
            if not run.is_main:
                return
            metrics = {"validation": run.objective.validation_loss(unet), **scores}
            self._write_grid(unet, state.step)
        name = SCORE_KEYS[run.recipe.evaluate.score]
        if state.best is None or is_better(name, metrics[name], state.best[0]):
            state.best = (metrics[name], state.step)
        if self.metrics_file:
            self.metrics_file.add({"step": state.step, **metrics})
            title = f"{run.recipe.name}: distillation losses"
            loss_curves(self.metrics_file.entries, run.folder / "loss.png", title=title)
        state.metrics = {**state.metrics, "validation": metrics["validation"], name: metrics[name]}

    def _write_grid(self, unet: torch.nn.Module, step: int) -> None:
        """samples/step-N.png and samples/latest.png: teacher and student from the same noise."""
        run = self.run
        section = run.recipe.evaluate
        prompts = section.prompts or run.pool.draw(generator(section.seed, GRID), GRID_COLUMNS)
        shape = run.teacher.latent_shape(run.recipe.cache.resolution)
        noise = starting_noise(section.seed, range(len(prompts)), shape, GRID)

        if self._teacher_images is None:
            steps = section.num_inference_steps
            self._teacher_images = sample_images(
                run.teacher, prompts, noise, num_inference_steps=steps, guidance_scale=section.guidance_scale
            )
        student_images = sample_images(
            run.teacher,
            prompts,
            noise,
            unet=_in_teacher_dtype(run, unet),
            schedule=run.schedule,
            **vars(run.sampling),
        )
        rows = [("teacher", self._teacher_images), (f"student, step {step:,}", student_images)]
        path = run.folder / "samples" / f"step-{step:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(rows, prompts, path)
        shutil.copyfile(path, path.with_name("latest.png"))


def _in_teacher_dtype(run: Run, unet: torch.nn.Module) -> torch.nn.Module:
    """The student's weights in the teacher's precision, in which conditions are encoded."""
    if run.teacher.dtype == torch.float32:
        return unet
    return plain_copy(run, unet).to(run.teacher.device, run.teacher.dtype)


@dataclass(frozen=True)
class Scoring:
    """Scores of images that the student generates; they are deleted once they have been scored.

    image_size: (height, width) as generated. scored_size: as they are scored. Networks are loaded for each evaluation
    anew, when its images are there: their memory (5 GB of the paper's CLIP model) belongs to training and sampling.
    """

    spec: EvaluationSpec
    prompts: list[str]
    image_size: tuple[int, int]
    scored_size: tuple[int, int]

    @classmethod
    def open(cls, run: Run, progress: Progress, log: Log) -> Scoring:
        """Raises RcdeployError when prompts or weights are unusable, or images would be too few for an FID."""
        section = run.recipe.evaluate
        teacher = run.teacher
        files = tuple(map(Path, section.prompt_files))
        spec = EvaluationSpec.of_recipe(
            section,
            prompt_files=files or (run.cache.folder / "prompts.txt",),
            column=run.recipe.prompts.column if files else None,
            metrics=SCORE_METRICS[section.score],
            judge=judge_of(teacher.folder),
            shard_size=SCORE_SHARD_SIZE,
            **vars(run.sampling),
        )
        prompts = choose_prompts(spec)
        for remark in spec.check_enough_images({"all": len(prompts)}):
            log(remark)
        _, height, width = teacher.latent_shape(run.recipe.cache.resolution)
        image_size = (height * teacher.pixels_per_latent, width * teacher.pixels_per_latent)
        scored_size = spec.image_size(image_size)
        scorer = open_scorer(spec, size=scored_size, device=teacher.device, progress=progress)  # can it be?
        if scorer.judge and not any(scorer.judge.labels(prompt) for prompt in prompts):
            raise RcdeployError(
                "the judge recognises no attribute in any of the prompts",
                fix="Name other prompts as evaluate.prompt_files.",
            )
        return cls(spec, prompts, image_size, scored_size)

    def __call__(self, run: Run, step: int, unet: torch.nn.Module) -> dict[str, float]:
        """Scores of `unet`, which is in the teacher's precision. A collective: every process generates images."""
        folder = run.folder / "evaluations" / f"step-{step:08}"
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        run.accelerator.wait_for_everyone()
        image_set = open_image_set(
            folder,
            self.prompts,
            {"step": step},
            size=self.scored_size,
            shard_size=self.spec.images_per_shard(len(self.prompts)),
            batch_size=self.spec.batch_size,
        )
        generate = sampler(run.teacher, self.image_size, unet, run.schedule)
        generate_images(image_set, generate, self.spec)
        scorer = open_scorer(self.spec, size=self.scored_size, device=run.teacher.device)
        result = evaluate(image_set, generate, scorer, self.spec)
        run.accelerator.wait_for_everyone()
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        scores: dict[str, float] = result["scores"]["all"]
        return scores
