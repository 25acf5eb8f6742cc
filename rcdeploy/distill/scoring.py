"""Scores of a student while it is trained: pictures drawn with its EMA weights, by every process, and thrown away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rcdeploy_runtime.errors import RcdeployError

from ..evaluate.evaluation import evaluate, smaller
from ..evaluate.image_set import open_set
from ..evaluate.metrics import Scorer, Weights, choose_metrics, open_scorer, refuse_too_few
from ..evaluate.prompt_choice import choose_prompts
from ..evaluate.source import by_teacher
from ..progress import Progress

if TYPE_CHECKING:
    from .run import Run

METRICS = {"fid": ("fid", "is"), "judge": ("judge",)}
SHARD, BATCH = 256, 16


@dataclass(frozen=True)
class Scoring:
    """Prompts, networks and reference, opened before the first step: what is wrong with them is said then."""

    prompts: list[str]
    drawn_size: tuple[int, int]
    size: tuple[int, int]
    scorer: Scorer

    @classmethod
    def open(cls, run: Run, progress: Progress, tell: Callable[[str], None]) -> Scoring:
        """Raises RcdeployError when prompts or weights cannot be used, or pictures would be too few for an FID."""
        wanted, teacher = run.recipe.evaluate, run.teacher
        sources = [Path(p) for p in wanted.prompt_files] or [run.cache.folder / "prompts.txt"]
        column = run.recipe.prompts.column if wanted.prompt_files else None
        prompts = choose_prompts(sources, column=column, count=wanted.count, at_most=True, seed=wanted.seed)
        weights = Weights(
            inception=Path(wanted.inception) if wanted.inception else None,
            reference=Path(wanted.reference) if wanted.reference else None,
            judge=teacher.folder / "judge",
        )
        metrics = choose_metrics(METRICS[wanted.score], weights)
        for remark in refuse_too_few(metrics, {"all": len(prompts)}, allow_few=False):
            tell(remark)
        _, height, width = teacher.latent_shape(run.recipe.cache.resolution)
        drawn = height * teacher.pixels_per_latent, width * teacher.pixels_per_latent
        size = smaller(drawn, None)
        scorer = open_scorer(
            metrics,
            weights,
            size=size,
            device=teacher.device,
            progress=lambda stage, done, of: progress(stage, done, of, {}),
        )
        judge = scorer.networks["judge"].judge if "judge" in scorer.networks else None
        if judge and not any(judge.wanted(prompt) for prompt in prompts):
            raise RcdeployError(
                "the judge can read nothing of what the prompts ask for", fix="Name others as evaluate.prompt_files."
            )
        return cls(prompts, drawn, size, scorer)

    def __call__(self, run: Run, unet: torch.nn.Module) -> dict[str, float]:
        """The figures of `unet`, in the teacher's precision; every process must ask, and helps with the pictures."""
        wanted, folder = run.recipe.evaluate, run.folder / "evaluations" / f"step-{run.step:08}"
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        run.accelerator.wait_for_everyone()
        pictures = open_set(
            folder, self.prompts, {"step": run.step}, size=self.size, shard_size=SHARD, batch_size=BATCH
        )
        settings = {"num_inference_steps": wanted.num_inference_steps, "guidance_scale": wanted.guidance_scale}
        drawing = by_teacher(run.teacher, self.drawn_size, unet)
        found = evaluate(pictures, drawing, self.scorer, seed=wanted.seed, settings=settings)["scores"]["all"]
        run.accelerator.wait_for_everyone()
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        return found
