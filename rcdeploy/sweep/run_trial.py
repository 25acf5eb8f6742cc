"""One trial: its student distilled, images generated and scored as rcdeploy evaluate does it.

The outputs of the networks are kept: scores of other parts of the prompts, or against another reference, need no new
images.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rcdeploy_runtime.files import read_json, write_json

from ..diffusion_model import LatentDiffusionModel
from ..distill.loop import distill
from ..evaluate.evaluation import evaluate, identity_of
from ..evaluate.image_set import open_image_set
from ..evaluate.image_source import ImageSource, open_image_source
from ..evaluate.metrics import open_scorer
from ..evaluate.prompt_choice import choose_prompts
from ..evaluate.target import EvaluationTarget
from ..model_folder import resolve
from ..progress import Log, Progress
from ..storage.claims import Claim
from .plan import NETWORKS_FILE, Plan
from .trial import Trial


def run_trial(plan: Plan, trial: Trial, progress: Progress, log: Log) -> bool:
    """Trains and scores the trial, as far as that is not done; the same call resumes. False: another process runs it.

    Raises what distill raises, Stopped included.
    """
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    claim = Claim(trial.folder)
    if not claim.take():
        return False
    try:
        if not trial.is_trained():
            distill(trial.recipe, trial.folder, progress, log)
        if not plan.is_done(trial):
            score_trial(plan, trial, progress, log)
    finally:
        claim.release()
    return True


def score_trial(plan: Plan, trial: Trial, progress: Progress, log: Log) -> None:
    """Generates one image for each prompt and computes the networks' outputs, both as far as they are missing."""
    spec = plan.trial_spec(trial)
    prompts = choose_prompts(spec)
    source = _image_source(trial)
    size = spec.image_size(source.size)
    image_set = open_image_set(
        plan.evaluation_folder(trial),
        prompts,
        identity_of(source.model["digest"], source.size, prompts, spec),
        size=size,
        shard_size=spec.images_per_shard(len(prompts)),
        batch_size=spec.batch_size,
    )
    scorer = open_scorer(spec, size=size, device=scoring_device())
    evaluate(image_set, source.generate, scorer, spec, progress=progress, log=log)
    file = image_set.folder / NETWORKS_FILE
    write_json(file, (read_json(file) if file.is_file() else {}) | plan.network_digests)
    if not plan.score.keep_pictures:
        image_set.delete_images()


def scoring_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _image_source(trial: Trial) -> ImageSource:
    folder: Path = trial.folder
    if trial.is_teacher:
        teacher = trial.recipe.teacher  # perhaps a name on the hub
        folder = LatentDiffusionModel(teacher.path, revision=teacher.revision).folder
    return open_image_source(EvaluationTarget.of(resolve(folder)))
