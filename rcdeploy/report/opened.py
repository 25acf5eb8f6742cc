"""A run as it lies on disk, finished or not, with its teacher, its package and its prompts, as far as they are here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.package import Package

from ..diffusion_model import LatentDiffusionModel
from ..evaluate.spec import SCORE_KEYS, is_better
from ..model_description import ModelDescription, describe_model
from ..model_folder import resolve
from ..prompts.recipe_pool import find_pool
from ..random_streams import GRID, generator
from ..recipe import Student
from ..run_folder import read_metrics
from ..student.spec import student_config

PROMPTS = 8
"""shown at the most, as in the grids of a run"""


@dataclass
class Opened:
    """notes: what a reader should know. student: the run's pipeline, opened as a teacher is; None before its end."""

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
        """The line of metrics that was best by what the recipe scores with: validation loss, FID or a judge."""
        found: dict[str, Any] | None = None
        for line in self.metrics:
            if self.score in line and (found is None or is_better(self.score, line[self.score], found[self.score])):
                found = line
        return found

    @property
    def score(self) -> str:
        """The figure in the metrics that says which step is best."""
        return SCORE_KEYS[self.evaluate.get("score", "validation")]

    @property
    def evaluate(self) -> dict[str, Any]:
        return dict(self.manifest.recipe["evaluate"])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures: a static package's own, else the recipe's or the teacher's."""
        if self.package and (static := self.package.manifest.facts.get("static_size")):
            return int(static[0]), int(static[1])
        anything = self.teacher or self.student
        native = anything.latent_shape()[1] * anything.pixels_per_latent if anything else 0
        edge = int(self.manifest.recipe["cache"]["resolution"] or native)
        return edge, edge

    def costed(self) -> dict[str, ModelDescription]:
        """What can be counted, by name. A student without a pipeline yet is its teacher with a smaller UNet."""
        places = {"teacher": self.teacher, "student": self.student}
        found = {name: describe_model(resolve(model.folder)) for name, model in places.items() if model}
        if "student" not in found and "teacher" in found and self.student_config is not None:
            teacher = found["teacher"]
            configs = {**teacher.configs, "unet": dict(self.student_config)}
            found["student"] = replace(teacher, kind="student", configs=configs, weight_bytes=None)
        if self.package:
            found["package"] = describe_model(resolve(self.package.path))
        return found


def open_run(run: Path, package: Path | None = None) -> Opened:
    """The run with its teacher, student and package, as far as they are there. Raises RcdeployError as write_report."""
    if not run.exists():
        raise RcdeployError(f"there is no run {run}", fix="Give a folder under runs/, or none for the newest.")
    if (run / NAME).is_file() and read_json(run / NAME).get("kind") == "package":
        raise RcdeployError(f"{run} is a package, not a run", fix=f"Name its run first: rcdeploy report RUN {run}")
    manifest = Manifest.read(run, "run")
    recipe = manifest.recipe
    opened = Opened(run, manifest, read_metrics(run))
    try:
        opened.teacher = LatentDiffusionModel(recipe["teacher"]["path"], revision=recipe["teacher"]["revision"])
        if opened.teacher.revision != manifest.teacher.get("revision"):
            opened.teacher = None
            opened.notes.append("The teacher has changed since the run began: nothing is compared with it.")
    except RcdeployError:
        opened.notes.append("The teacher is not on this machine: there are no pictures of it, and no ratios to it.")
    if (run / "pipeline" / "model_index.json").is_file():
        opened.student = LatentDiffusionModel(str(run / "pipeline"))
        opened.student_config = opened.student.unet_config
    else:
        wanted = recipe["train"]["max_steps"]
        opened.notes.insert(0, f"The training has not ended: {opened.step:,} of {wanted:,} steps are done.")
        if opened.teacher:
            opened.student_config, _ = student_config(Student(**recipe["student"]).spec, opened.teacher.unet_config)
    if package:
        opened.package = Package(package)
        origin = {m["kind"]: m["sha256"] for m in opened.package.manifest.made_from}.get("run")
        if origin != sha256(run / NAME):
            opened.notes.append("The package was made from another run, or from another state of this one.")
    return opened


def own_prompts(opened: Opened) -> list[str]:
    """Those of the run's grids: the recipe's, or what the run drew from its pool, found by its digest if it is here."""
    if opened.evaluate["prompts"]:
        return list(opened.evaluate["prompts"])
    wanted = {m["kind"]: m["sha256"] for m in opened.manifest.made_from}.get("prompt_pool")
    roots = (Path.cwd(), opened.folder.resolve().parent.parent)
    pool = find_pool(wanted, opened.manifest.recipe["prompts"]["pool"], roots)
    if pool is None:
        return []
    with pool:
        return pool.draw(generator(opened.evaluate["seed"], GRID), PROMPTS)
