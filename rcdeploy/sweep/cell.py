"""One cell: its student distilled, its pictures drawn and read by the judge. What the judge read is kept, not the
pictures: scores of other parts of the prompts, or against another reference, need no new ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

from ..claims import Claim
from ..conditioning import GRID, generator
from ..distill.loop import distill
from ..distill.run import Progress
from ..evaluate.frechet import Statistics
from ..evaluate.judge import Judge
from ..evaluate.scores import judge_readings, scores_of_readings
from ..prompts.readers import batches, files_of, whole_words
from ..sampling import pictures
from ..teacher import Teacher
from ..tensors import load_tensors, save_tensors
from .plan import Cell, Plan

TOUCH_SECONDS = 30


def make(plan: Plan, cell: Cell, progress: Progress, say: Callable[[str], None]) -> bool:
    """Trains and scores the cell, as far as that is not done; the same call goes on. False: another process is at it.

    Raises what distill raises, Stopped included.
    """
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    claim, touched = Claim(cell.folder), [time.monotonic()]

    def alive(stage: str, done: int, of: int, figures: dict[str, float]) -> None:
        if time.monotonic() - touched[0] > TOUCH_SECONDS:
            claim.touch()
            touched[0] = time.monotonic()
        progress(stage, done, of, figures)

    if not claim.take():
        return False
    try:
        if not cell.is_trained():
            distill(cell.recipe, cell.folder, alive, say)
        if not plan.readings(cell).is_file():
            read(plan, cell, alive)
    finally:
        claim.release()
    return True


def asked(plan: Plan) -> list[str]:
    """The prompts that every cell draws: `count` of the captions at random, all of them when there are fewer."""
    score = plan.score
    files = [file for captions in score.captions for file in files_of(Path(captions))]
    # as a pool has them: in order, each once
    texts = dict.fromkeys(
        text for rows in batches(files, score.column) for row in rows if (text := " ".join(row.split()))
    )
    everything = list(texts)
    if not everything:
        raise RcdeployError(f"{', '.join(score.captions)}: there is no caption in it")
    order = generator(score.seed, GRID).permutation(len(everything))[: score.count]
    return [everything[i] for i in order]


def read(plan: Plan, cell: Cell, progress: Progress) -> None:
    """Draws one picture a prompt, the i-th from the noise of (score.seed, i), and keeps the judge's readings."""
    score, prompts = plan.score, asked(plan)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = Teacher(cell.recipe.teacher.path, revision=cell.recipe.teacher.revision).to(device)
    unet = None
    if cell.trained:
        unet = UNet2DConditionModel.from_pretrained(cell.folder / "pipeline", subfolder="unet").to(device).eval()
    judge, parts = Judge.load(plan.judge()), []
    for start in range(0, len(prompts), score.batch_size):
        rows = range(start, min(start + score.batch_size, len(prompts)))
        images = pictures(
            teacher,
            [prompts[i] for i in rows],
            unet=unet,
            seed=score.seed,
            indices=rows,
            resolution=cell.recipe.cache.resolution,
            batch_size=score.batch_size,
            num_inference_steps=score.num_inference_steps,
            guidance_scale=score.guidance_scale,
        )
        parts.append(judge_readings(judge, images))
        progress("pictures", rows.stop, len(prompts), {})
    tensors = {"features": torch.cat([features for features, _ in parts])}
    for name in judge.heads:
        tensors[f"logits.{name}"] = torch.cat([logits[name] for _, logits in parts])
    save_tensors(plan.readings(cell), tensors)


class Scorer:
    """From the judge's readings to scores: {"PART FIGURE": value} for every part of the prompts."""

    def __init__(self, plan: Plan) -> None:
        self.plan, folder = plan, plan.judge()
        self.judge, self.prompts = Judge.load(folder), asked(plan)
        file = folder / "reference.safetensors"
        self.reference = Statistics.load(file) if file.is_file() else None
        self.parts = {name: self._rows(part.include, part.exclude) for name, part in plan.score.prompts.items()}
        for name, rows in self.parts.items():
            if len(rows) < 2:
                raise RcdeployError(f"prompts.{name} of the score file: {len(rows)} of {len(self.prompts)} prompts fit")

    def _rows(self, include: list[str], exclude: list[str]) -> list[int]:
        wanted, unwanted = whole_words(include), whole_words(exclude)
        return [
            i
            for i, prompt in enumerate(self.prompts)
            if (not wanted or any(p.search(prompt) for p in wanted)) and not any(p.search(prompt) for p in unwanted)
        ]

    def __call__(self, cell: Cell) -> dict[str, float]:
        tensors = load_tensors(self.plan.readings(cell))
        logits: dict[str, Tensor] = {name: tensors[f"logits.{name}"] for name in self.judge.heads}
        scores = {}
        for part, rows in self.parts.items():
            said = scores_of_readings(
                self.judge,
                tensors["features"][rows],
                {name: values[rows] for name, values in logits.items()},
                [self.prompts[i] for i in rows],
                self.reference,
            )
            scores |= {f"{part} {name.replace('_', ' ')}": value for name, value in said.items()}
        return scores
