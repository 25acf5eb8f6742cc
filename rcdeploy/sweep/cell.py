"""One cell: its student distilled, its pictures drawn and read by networks, as rcdeploy evaluate does it.

What was read is kept: scores of other parts of the prompts, or against another reference, need no new pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, write_json

from ..diffusion_model import LatentDiffusionModel
from ..distill.loop import distill
from ..evaluate.evaluation import evaluate, identity_of
from ..evaluate.image_set import ImageSet, open_image_set
from ..evaluate.image_source import ImageSource, open_image_source
from ..evaluate.metrics import Scorer, open_scorer
from ..evaluate.prompt_choice import choose_prompts, matching_prompts
from ..evaluate.spec import EvaluationSpec
from ..evaluate.target import EvaluationTarget
from ..evaluate.vqa import NounPhrases
from ..model_folder import resolve
from ..progress import Progress, no_progress
from ..storage.claims import Claim
from .plan import READ, Cell, Plan

TOUCH_SECONDS = 30


def make(plan: Plan, cell: Cell, progress: Progress, say: Callable[[str], None]) -> bool:
    """Trains and scores the cell, as far as that is not done; the same call goes on. False: another process is at it.

    Raises what distill raises, Stopped included.
    """
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    claim, touched = Claim(cell.folder), [time.monotonic()]

    def alive(stage: str, done: int, of: int, figures: Mapping[str, float] | None = None) -> None:
        if time.monotonic() - touched[0] > TOUCH_SECONDS:
            claim.touch()
            touched[0] = time.monotonic()
        progress(stage, done, of, figures)

    if not claim.take():
        return False
    try:
        if not cell.is_trained():
            distill(cell.recipe, cell.folder, alive, say)
        if not plan.is_done(cell):
            read(plan, cell, alive)
    finally:
        claim.release()
    return True


def read(plan: Plan, cell: Cell, progress: Progress) -> None:
    """Draws one picture a prompt and shows them to the networks, both as far as that was not done."""
    spec, prompts, source = evaluation_spec(plan), asked(plan), _source(cell)
    size = spec.image_size(source.size)
    pictures = open_image_set(
        plan.pictures(cell),
        prompts,
        identity_of(source.model["digest"], source.size, prompts, spec),
        size=size,
        shard_size=spec.images_per_shard(len(prompts)),
        batch_size=spec.batch_size,
    )
    evaluate(pictures, source.generate, _scorer(plan, size), spec, progress=progress)
    file = pictures.folder / READ
    write_json(file, (read_json(file) if file.is_file() else {}) | plan.read_by())
    if not plan.score.keep_pictures:
        for shard in pictures.folder.glob("pictures-*.safetensors"):
            shard.unlink()


def evaluation_spec(plan: Plan) -> EvaluationSpec:
    """The settings of the score file."""
    score = plan.score
    return EvaluationSpec(
        prompt_files=tuple(map(Path, score.captions)),
        column=score.column,
        count=score.count,
        fewer_is_fine=True,
        seed=score.seed,
        num_inference_steps=score.num_inference_steps,
        guidance_scale=score.guidance_scale,
        resize=score.resize,
        metrics=tuple(score.metrics),
        allow_few=score.allow_few,
        batch_size=score.batch_size,
        shard_size=score.shard_size,
    ).replace(**plan.weights())


def asked(plan: Plan) -> list[str]:
    """The prompts that every cell draws: `count` of the captions at random, all of them when there are fewer."""
    return choose_prompts(evaluation_spec(plan))


def _source(cell: Cell) -> ImageSource:
    folder = cell.folder
    if not cell.trained:
        teacher = cell.recipe.teacher  # perhaps from the hub
        folder = LatentDiffusionModel(teacher.path, revision=teacher.revision).folder
    return open_image_source(EvaluationTarget.of(resolve(folder)))


def _scorer(plan: Plan, size: tuple[int, int]) -> Scorer:
    """Raises RcdeployError for weights that are not named or not there."""
    return open_scorer(evaluation_spec(plan), size=size, device="cuda" if torch.cuda.is_available() else "cpu")


class Scores:
    """From what the networks read to scores: {"PART FIGURE": value} for every part of the prompts."""

    def __init__(self, plan: Plan) -> None:
        """Raises RcdeployError when something that scores is missing, or a part has too few pictures."""
        self.plan, self.prompts = plan, asked(plan)
        self._scorers: dict[tuple[int, int], Scorer] = {}
        spec = evaluation_spec(plan)
        if "vqa" in spec.selected_metrics():
            NounPhrases("en_core_web_sm")
        parts = plan.score.prompts.items()
        self.parts = {name: matching_prompts(self.prompts, part.include, part.exclude) for name, part in parts}
        counts = {name: sum(chosen) for name, chosen in self.parts.items()}
        for name, count in counts.items():
            if count < 2:
                raise RcdeployError(f"prompts.{name} of the score file: {count} of {len(self.prompts)} prompts fit")
        spec.check_enough_images(counts)

    def __call__(self, cell: Cell) -> dict[str, float]:
        folder = self.plan.pictures(cell)
        pictures = ImageSet.open(folder, self.prompts)
        size = pictures.size
        if size not in self._scorers:
            self._scorers[size] = _scorer(self.plan, size)
        scorer = self._scorers[size]
        readings = {name: pictures.outputs_of(network, no_progress) for name, network in scorer.networks.items()}
        found = {}
        for part, chosen in self.parts.items():
            for name, value in scorer.scores(readings, self.prompts, chosen).items():
                found[f"{part} {name.removeprefix('judge.').replace('_', ' ')}"] = value
        return found
