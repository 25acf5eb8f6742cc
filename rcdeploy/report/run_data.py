"""A run on disk, finished or not, with its teacher, package and prompts as far as they are on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.sampling_defaults import SamplingDefaults, SamplingFacts

from ..diffusion_model import LatentDiffusionModel
from ..evaluate.spec import SCORE_KEYS, is_better
from ..model_description import ModelDescription, describe_model
from ..model_folder import resolve
from ..prompts.recipe_pool import find_pool
from ..random_streams import GRID, generator
from ..recipe import Recipe
from ..run_folder import read_metrics
from ..student.spec import student_config
from .evaluations import EvaluationScores, find_scores, package_digests

MAX_PROMPTS = 8
"""compared on the page, as in the grids of a run"""


@dataclass
class RunData:
    """The data of a report.

    Attributes:
        folder, manifest, metrics: of the run.
        teacher: None if it is not on this machine, or has changed.
        student: the run's pipeline; None before the run has finished.
        student_config: of its UNet; from the recipe if the run has not finished; None without teacher and student.
        package: if one was given.
        notes: sentences that the reader should know.
    """

    folder: Path
    manifest: Manifest
    metrics: list[dict[str, Any]]
    teacher: LatentDiffusionModel | None = None
    student: LatentDiffusionModel | None = None
    student_config: Mapping[str, Any] | None = None
    package: Package | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        return max((m["step"] for m in self.metrics), default=int(self.manifest.facts.get("steps", 0)))

    @property
    def best(self) -> dict[str, Any] | None:
        """The metrics of the step that is best by the recipe's score: validation loss, FID or a judge."""
        best: dict[str, Any] | None = None
        for entry in self.metrics:
            if self.score in entry and (best is None or is_better(self.score, entry[self.score], best[self.score])):
                best = entry
        return best

    @property
    def score(self) -> str:
        """The key of the metrics that decides which step is best."""
        return SCORE_KEYS[self.evaluate.get("score", "validation")]

    @property
    def evaluate(self) -> dict[str, Any]:
        return dict(self.manifest.recipe["evaluate"])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels: a static package's own, else the recipe's, the teacher's or the package's."""
        if self.package and (static := self.package.manifest.facts.get("static_size")):
            return int(static[0]), int(static[1])
        if self.package and not (self.teacher or self.student or self.manifest.recipe["cache"]["resolution"]):
            return self.package.size
        model = self.teacher or self.student
        native = model.latent_shape()[1] * model.pixels_per_latent if model else 0
        resolution = int(self.manifest.recipe["cache"]["resolution"] or native)
        return resolution, resolution

    @property
    def samplings(self) -> dict[str, SamplingDefaults]:
        """How each model is sampled: the teacher as [evaluate] says, student and package as they want to be."""
        evaluate = self.evaluate
        teacher = SamplingDefaults("ddim", evaluate["num_inference_steps"], evaluate["guidance_scale"])
        student = self.manifest.facts_as(SamplingFacts).sampling or teacher
        return {
            "teacher": teacher,
            "student": student,
            "package": (self.package.facts.sampling if self.package else None) or student,
        }

    def descriptions(self) -> dict[str, ModelDescription]:
        """The models whose costs can be counted. A student without a pipeline is its teacher with a smaller UNet."""
        models = {"teacher": self.teacher, "student": self.student}
        descriptions = {name: describe_model(resolve(model.folder)) for name, model in models.items() if model}
        if "student" not in descriptions and "teacher" in descriptions and self.student_config is not None:
            teacher = descriptions["teacher"]
            configs = {**teacher.configs, "unet": dict(self.student_config)}
            descriptions["student"] = replace(teacher, kind="student", configs=configs, weight_bytes=None)
        if self.package:
            descriptions["package"] = describe_model(resolve(self.package.path))
        return descriptions

    def evaluations(self) -> list[tuple[str, EvaluationScores]]:
        """("student" or "package", scores) of the evaluations in the current folder or beside the run."""
        folder = self.folder.resolve()
        places = [Path.cwd(), folder, folder.parent, folder.parent.parent]
        digests = {"student": {self.student.revision}} if self.student else {}
        if self.package:
            digests["package"] = package_digests(self.package.manifest)
        names = {"student": folder.name, "package": self.package.path.resolve().name if self.package else ""}
        return [(kind, scores) for kind in digests for scores in find_scores(digests[kind], names[kind], places)]

    def prompts(self) -> list[str]:
        """Those of the run's grids: the recipe's, or those that the run took from its pool, if that is still here."""
        if self.evaluate["prompts"]:
            return list(self.evaluate["prompts"])
        digest = {origin["kind"]: origin["sha256"] for origin in self.manifest.made_from}.get("prompt_pool")
        places = (Path.cwd(), self.folder.resolve().parent.parent)
        pool = find_pool(digest, self.manifest.recipe["prompts"]["pool"], places)
        if pool is None:
            return []
        with pool:
            return pool.draw(generator(self.evaluate["seed"], GRID), MAX_PROMPTS)


def read_run(run: Path, package: Path | None = None) -> RunData:
    """The run with its teacher, student and package, as far as they are there.

    Raises:
        RcdeployError: `run` is no run, or `package` is no package.
    """
    model = resolve(run, kinds=("run",))
    manifest = Manifest.read(run, "run")
    data = RunData(run, manifest, read_metrics(run))
    _find_teacher(data)
    if model.pipeline is not None:
        data.student = LatentDiffusionModel(str(model.pipeline))
        data.student_config = data.student.unet_config
    else:
        total = manifest.recipe["train"]["max_steps"]
        data.notes.insert(0, f"The training has not ended: {data.step:,} of {total:,} steps are done.")
        if data.teacher:
            spec = Recipe.model_validate(manifest.recipe).student_spec
            data.student_config, _ = student_config(spec, data.teacher.unet_config)
    if package:
        data.package = Package(package)
        origin = {m["kind"]: m["sha256"] for m in data.package.manifest.made_from}.get("run")
        if origin != sha256(run / NAME):
            data.notes.append("The package was made from another run, or from another state of this one.")
    return data


def _find_teacher(data: RunData) -> None:
    section = data.manifest.recipe["teacher"]
    try:
        teacher = LatentDiffusionModel(section["path"], revision=section["revision"])
    except RcdeployError:
        data.notes.append("The teacher is not on this machine: there are no images of it, and no ratios to it.")
        return
    if teacher.revision == data.manifest.teacher.get("revision"):
        data.teacher = teacher
    else:
        data.notes.append("The teacher has changed since the run began: nothing is compared with it.")
