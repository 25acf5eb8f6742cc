"""Evaluation of the EMA student while it trains: validation loss, sample images, and scores of generated images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

from ..diffusion_model import predict
from ..evaluate.evaluation import evaluate
from ..evaluate.image_set import open_image_set
from ..evaluate.image_source import sampler
from ..evaluate.metrics import Scorer, open_scorer
from ..evaluate.prompt_choice import choose_prompts
from ..evaluate.spec import SCORE_KEYS, EvaluationSpec, is_better
from ..judge_files import judge_of
from ..plots import grid, loss_curves
from ..progress import Log, Progress
from ..random_streams import GRID, VALIDATION, generator
from ..run_folder import MetricsFile
from ..sampling import sample_images, starting_noise
from .losses import output_loss
from .pipeline import ema_weights, plain_copy
from .run import Run
from .step import guided_prediction
from .train_state import TrainState

GRID_COLUMNS = 8
VALIDATION_BATCH_SIZE = 16
SCORE_METRICS = {"fid": ("fid", "is"), "judge": ("judge",)}
"""The metrics that are computed for each value of evaluate.score."""
SCORE_SHARD_SIZE = 256


class Validator:
    """Evaluates the EMA weights of a run; what stays the same between evaluations is made once."""

    def __init__(self, run: Run, metrics_file: MetricsFile | None, progress: Progress, log: Log) -> None:
        """metrics_file: on the main process. Raises RcdeployError when prompts or weights of the score are unusable."""
        self.run = run
        self.metrics_file = metrics_file
        self._scoring = None
        if run.recipe.evaluate.every and run.recipe.evaluate.score != "validation":
            self._scoring = Scoring.open(run, progress, log)
        self._validation_batches: list[tuple[Tensor, Tensor, list[str]]] | None = None
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
            metrics = {"validation": self.validation_loss(unet), **scores}
            self._write_grid(unet, state.step)
        name = SCORE_KEYS[run.recipe.evaluate.score]
        if state.best is None or is_better(name, metrics[name], state.best[0]):
            state.best = (metrics[name], state.step)
        if self.metrics_file:
            self.metrics_file.add({"step": state.step, **metrics})
            title = f"{run.recipe.name}: distillation losses"
            loss_curves(self.metrics_file.entries, run.folder / "loss.png", title=title)
        state.metrics = {**state.metrics, "validation": metrics["validation"], name: metrics[name]}

    @torch.no_grad()
    def validation_loss(self, unet: torch.nn.Module) -> float:
        """Equation 1 on fixed noisy latents, each with a random prompt of the pool (the harder case)."""
        if self._validation_batches is None:
            self._validation_batches = _validation_batches(self.run)
        teacher = self.run.teacher
        scale = self.run.recipe.distill.guidance_scale
        total = 0.0
        count = 0
        for noisy_latents, timesteps, prompts in self._validation_batches:
            condition = teacher.encode_prompts(prompts)
            teacher_output = guided_prediction(
                teacher.unet, noisy_latents.to(teacher.dtype), timesteps, condition, self.run.batches.null, scale
            )
            condition = condition.to(noisy_latents.device, torch.float32)
            student_output = predict(unet, noisy_latents, timesteps, condition)
            total += output_loss(teacher_output, student_output).item() * len(prompts)
            count += len(prompts)
        return float(f"{total / count:.6g}")

    def _write_grid(self, unet: torch.nn.Module, step: int) -> None:
        """samples/step-N.png and samples/latest.png: teacher and student from the same noise."""
        run = self.run
        section = run.recipe.evaluate
        prompts = section.prompts or run.pool.draw(generator(section.seed, GRID), GRID_COLUMNS)
        shape = run.teacher.latent_shape(run.recipe.cache.resolution)
        noise = starting_noise(section.seed, range(len(prompts)), shape, GRID)

        def images(unet: torch.nn.Module | None) -> Tensor:
            return sample_images(
                run.teacher,
                prompts,
                noise,
                unet=unet,
                num_inference_steps=section.num_inference_steps,
                guidance_scale=section.guidance_scale if unet is None else run.recipe.student_sampling.guidance_scale,
            )

        if self._teacher_images is None:
            self._teacher_images = images(None)
        rows = [("teacher", self._teacher_images), (f"student, step {step:,}", images(_in_teacher_dtype(run, unet)))]
        path = run.folder / "samples" / f"step-{step:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(rows, prompts, path)
        shutil.copyfile(path, path.with_name("latest.png"))


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


def _in_teacher_dtype(run: Run, unet: torch.nn.Module) -> torch.nn.Module:
    """The student's weights in the teacher's precision, in which conditions are encoded."""
    if run.teacher.dtype == torch.float32:
        return unet
    return plain_copy(run, unet).to(run.teacher.device, run.teacher.dtype)


@dataclass(frozen=True)
class Scoring:
    """Scores of images that the student generates; they are deleted once they have been scored.

    image_size: (height, width) as generated. scored_size: as they are scored.
    """

    spec: EvaluationSpec
    prompts: list[str]
    image_size: tuple[int, int]
    scored_size: tuple[int, int]
    scorer: Scorer

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
            guidance_scale=run.recipe.student_sampling.guidance_scale,
        )
        prompts = choose_prompts(spec)
        for remark in spec.check_enough_images({"all": len(prompts)}):
            log(remark)
        _, height, width = teacher.latent_shape(run.recipe.cache.resolution)
        image_size = (height * teacher.pixels_per_latent, width * teacher.pixels_per_latent)
        scored_size = spec.image_size(image_size)
        scorer = open_scorer(spec, size=scored_size, device=teacher.device, progress=progress)
        if scorer.judge and not any(scorer.judge.labels(prompt) for prompt in prompts):
            raise RcdeployError(
                "the judge recognises no attribute in any of the prompts",
                fix="Name other prompts as evaluate.prompt_files.",
            )
        return cls(spec, prompts, image_size, scored_size, scorer)

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
        result = evaluate(image_set, sampler(run.teacher, self.image_size, unet), self.scorer, self.spec)
        run.accelerator.wait_for_everyone()
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        scores: dict[str, float] = result["scores"]["all"]
        return scores
