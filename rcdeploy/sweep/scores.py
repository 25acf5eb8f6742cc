"""Scores of finished trials from the stored outputs of the networks, for each part of the prompts."""

from __future__ import annotations

from rcdeploy_runtime.errors import RcdeployError

from ..evaluate.image_set import ImageSet
from ..evaluate.metrics import Outputs, Scorer, open_scorer
from ..evaluate.networks import NOUN_PHRASE_PIPELINE
from ..evaluate.prompt_choice import choose_prompts, matching_prompts
from ..evaluate.spec import COMPBENCH
from ..progress import no_progress
from .plan import Plan
from .run_trial import scoring_device
from .trial import Trial


class TrialScores:
    """Scores of a trial, {"PART METRIC": value}; networks are loaded once for each image size."""

    def __init__(self, plan: Plan) -> None:
        """Raises RcdeployError when files of the metrics are missing, also on the hub, or a part has too few images."""
        self.plan = plan
        spec = plan.evaluation_spec
        self.prompts = choose_prompts(spec)
        self._scorers: dict[tuple[int, int], Scorer] = {}
        if {"vqa", COMPBENCH} & set(spec.selected_metrics()):
            from ..evaluate.vqa import NounPhrases

            NounPhrases(NOUN_PHRASE_PIPELINE)
        parts = plan.score.prompts.items()
        self.parts = {name: matching_prompts(self.prompts, part.include, part.exclude) for name, part in parts}
        counts = {name: sum(selected) for name, selected in self.parts.items()}
        for name, count in counts.items():
            if count < 2:
                raise RcdeployError(f"prompts.{name} of the score file matches {count} of {len(self.prompts)} prompts")
        spec.check_enough_images(counts)
        _ = plan.network_digests  # fetches networks that the score file names on the hub

    def __call__(self, trial: Trial) -> dict[str, float]:
        scorer, outputs = self.outputs(trial)
        scores = {}
        for part, selected in self.parts.items():
            for name, value in scorer.scores(outputs, self.prompts, selected).items():
                scores[self.table_name(part, name)] = value
        return scores

    @staticmethod
    def table_name(part: str, metric: str) -> str:
        """A metric's name in tables: "unseen", "judge.frechet_distance" -> "unseen frechet distance"."""
        return f"{part} {metric.removeprefix('judge.').replace('_', ' ')}"

    def has_outputs(self, trial: Trial) -> bool:
        """Whether the trial was scored here, and is not only known from an earlier table."""
        return self.plan.known_result(trial) is None and self.plan.is_done(trial)

    def outputs(self, trial: Trial) -> tuple[Scorer, Outputs]:
        """The stored outputs of all networks, a row for each prompt, and the scorer for images of their size."""
        image_set = ImageSet.open(self.plan.evaluation_folder(trial), self.prompts)
        size = image_set.size
        if size not in self._scorers:
            self._scorers[size] = open_scorer(self.plan.evaluation_spec, size=size, device=scoring_device())
        scorer = self._scorers[size]
        return scorer, {name: image_set.outputs_of(net, no_progress) for name, net in scorer.networks.items()}
