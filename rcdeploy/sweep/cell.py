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
from rcdeploy_runtime.manifest import Manifest

from ..diffusion_model import LatentDiffusionModel
from ..distill.loop import distill
from ..evaluate.evaluation import evaluate, identity_of, smaller
from ..evaluate.image_set import ImageSet, open_set
from ..evaluate.metrics import Scorer, Weights, choose_metrics, open_scorer, refuse_too_few
from ..evaluate.prompt_choice import choose_prompts
from ..evaluate.source import Source, open_source
from ..evaluate.vqa import NounPhrases
from ..progress import Progress
from ..prompts.patterns import WholeWordPatterns
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
    score, prompts = plan.score, asked(plan)
    source = _source(cell)
    settings = {"num_inference_steps": score.num_inference_steps, "guidance_scale": score.guidance_scale}
    size = smaller(source.size, score.resize)
    pictures = open_set(
        plan.pictures(cell),
        prompts,
        identity_of(source, prompts, score.seed, settings, size),
        size=size,
        shard_size=score.shard_size,
        batch_size=score.batch_size,
    )
    scorer = _scorer(plan, size)
    evaluate(
        pictures,
        source.drawing,
        scorer,
        seed=score.seed,
        settings=settings,
        progress=lambda stage, done, of: progress(stage, done, of, {}),
    )
    file = pictures.folder / READ
    write_json(file, (read_json(file) if file.is_file() else {}) | plan.read_by())
    if not score.keep_pictures:
        for shard in pictures.folder.glob("pictures-*.safetensors"):
            shard.unlink()


def asked(plan: Plan) -> list[str]:
    """The prompts that every cell draws: `count` of the captions at random, all of them when there are fewer."""
    score, captions = plan.score, [Path(c) for c in plan.score.captions]
    return choose_prompts(captions, column=score.column, count=score.count, at_most=True, seed=score.seed)


def _source(cell: Cell) -> Source:
    if cell.trained:
        return open_source(str(cell.folder))
    teacher = LatentDiffusionModel(
        cell.recipe.teacher.path, revision=cell.recipe.teacher.revision
    )  # perhaps from the hub
    return open_source(str(teacher.folder))


def _scorer(plan: Plan, size: tuple[int, int]) -> Scorer:
    """Raises RcdeployError for weights that are not named or not there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = Weights(**plan.weights())
    metrics = choose_metrics(plan.score.metrics, weights)
    return open_scorer(metrics, weights, size=size, device=device, allow_few=plan.score.allow_few)


class Scores:
    """From what the networks read to scores: {"PART FIGURE": value} for every part of the prompts."""

    def __init__(self, plan: Plan) -> None:
        """Raises RcdeployError when something that scores is missing, or a part has too few pictures."""
        self.plan, self.prompts = plan, asked(plan)
        self._scorers: dict[tuple[int, int], Scorer] = {}
        weights = Weights(**plan.weights())
        if "vqa" in choose_metrics(plan.score.metrics, weights):
            NounPhrases(str(weights.noun_phrases))
        self.parts = {name: self._chosen(part.include, part.exclude) for name, part in plan.score.prompts.items()}
        counts = {name: sum(chosen) for name, chosen in self.parts.items()}
        for name, count in counts.items():
            if count < 2:
                raise RcdeployError(f"prompts.{name} of the score file: {count} of {len(self.prompts)} prompts fit")
        refuse_too_few(plan.score.metrics, counts, plan.score.allow_few)

    def _chosen(self, include: list[str], exclude: list[str]) -> list[bool]:
        included = WholeWordPatterns(include).matches(self.prompts) if include else [True] * len(self.prompts)
        excluded = WholeWordPatterns(exclude).matches(self.prompts)
        return [inside and not outside for inside, outside in zip(included, excluded, strict=True)]

    def __call__(self, cell: Cell) -> dict[str, float]:
        folder = self.plan.pictures(cell)
        facts = Manifest.read(folder, "evaluation").facts
        size = (int(facts["identity"]["size"][0]), int(facts["identity"]["size"][1]))
        pictures = ImageSet(folder, self.prompts, int(facts["shard_size"]), int(facts["batch_size"]), size)
        if size not in self._scorers:
            self._scorers[size] = _scorer(self.plan, size)
        scorer = self._scorers[size]
        readings = {name: pictures.read(network, lambda *_: None) for name, network in scorer.networks.items()}
        found = {}
        for part, chosen in self.parts.items():
            for name, value in scorer.scores(readings, self.prompts, chosen).items():
                found[f"{part} {name.removeprefix('judge.').replace('_', ' ')}"] = value
        return found
