"""Defaults of an evaluation from the model's own folder: recipe, prompts, judge, image size.

Imports no torch, but for families that diffusers samples: their defaults stand in its code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from ..judge_files import JUDGE_FILES, JUDGE_FOLDER, judge_digest, judge_of
from ..model_config import is_other_family
from ..model_description import ModelDescription, describe_model
from ..model_folder import RUNS, ModelFolder
from ..model_index import ModelIndex
from ..recipe import PATHS
from .spec import EvaluationSpec, known_evaluate_section

TEACHERS = Path("examples/teachers")


@dataclass(frozen=True)
class EvaluationTarget:
    """A model to evaluate, and what its folder says about that.

    Attributes:
        model: the resolved folder. checkpoint: of a run: "best", "last" or a step; None for its pipeline.
        description: configs and image size; None with `index`, and for a checkpoint: its run may have no pipeline yet.
        index: of a pipeline that is sampled by diffusers, as LatentDiffusionModel does not know its family.
        package: the opened package, for a package.
        recipe: that the model was made with, as far as it is known; of a package without its paths.
        judge: the folder of the judge that belongs to it.
        prompt_files: of its captions, in order of preference: groups of files of which the first complete one serves.
    """

    model: ModelFolder
    checkpoint: str | None = None
    description: ModelDescription | None = None
    index: ModelIndex | None = None
    package: Package | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    judge: Path | None = None
    prompt_files: tuple[tuple[Path, ...], ...] = ()

    @classmethod
    def of(cls, model: ModelFolder, checkpoint: str | None = None) -> EvaluationTarget:
        """Raises RcdeployError for a model without weights, and for a checkpoint of anything but a run."""
        if checkpoint is not None and model.kind != "run":
            raise RcdeployError(
                f"{model.source} is not a run folder: only runs have checkpoints", fix="Leave --checkpoint out."
            )
        if model.path is None:
            raise RcdeployError(
                f"{model.source} is the name of a student: it has no weights, and generates nothing",
                fix="Give a run, a package, or a diffusers folder.",
            )
        if model.kind == "pipeline" and is_other_family(model.require_pipeline()):
            folder = model.require_pipeline()
            return cls(model, index=ModelIndex.read(folder), judge=judge_of(folder))
        description = describe_model(model) if checkpoint is None else None
        if model.kind == "package":
            return _of_package(model, Package(str(model.path)), description)
        if model.kind == "run":
            assert model.manifest is not None
            recipe = model.manifest.recipe
            judge = judge_of(Path(recipe["teacher"]["path"]))
            prompt_files = _run_prompts(model.manifest)
            return cls(model, checkpoint, description, recipe=recipe, judge=judge, prompt_files=prompt_files)
        return cls(model, checkpoint, description, judge=judge_of(model.require_pipeline()))

    @property
    def sampling(self) -> SamplingDefaults | None:
        """How the model wants to be sampled; None where its folder does not say so."""
        return self.package.facts.sampling if self.package else self.model.sampling

    def check_sampler(self, sampler: str | None) -> None:
        """Raises RcdeployError for a sampler of ours with a model that diffusers samples."""
        if self.index is not None and sampler is not None:
            raise RcdeployError(
                f"{self.model.source} is a {self.index.pipeline}, which is sampled by its own scheduler",
                fix="Leave --sampler out.",
            )

    def default_spec(self) -> EvaluationSpec:
        """The recipe's settings, the model's own sampling and the judge; without prompt files, which
        choose_prompt_files() returns."""
        section = known_evaluate_section(self.recipe)
        spec = EvaluationSpec.of_recipe(section, judge=self.judge, column=self.recipe.get("prompts", {}).get("column"))
        own = vars(self.sampling) if self.sampling else {}
        if self.index is not None:
            from ..diffusers_pipeline import default_sampling

            own = default_sampling(self.index)
        return spec.replace(prompt_files=(), **own)

    def choose_prompt_files(self) -> tuple[Path, ...]:
        """The files that the recipe evaluates with, else its paired ones, else the prompts of the latent cache.

        Raises RcdeployError when none of them exists.
        """
        for files in self.prompt_files:
            if files and all(file.exists() for file in files):
                return files
        missing = [file for files in self.prompt_files for file in files if not file.exists()]
        why = f"{missing[0]} of its recipe does not exist" if missing else "its folder names none"
        raise RcdeployError(
            f"there are no prompts to evaluate {self.model.source} with: {why}",
            fix="Name a file: --prompts captions.txt (or .csv, .jsonl, .parquet).",
        )


def _run_prompts(run: Manifest) -> tuple[tuple[Path, ...], ...]:
    """evaluate.prompt_files alone if the recipe has them; else the paired files, then the latent cache's prompts."""
    files = known_evaluate_section(run.recipe).prompt_files
    if files:
        return (tuple(map(Path, files)),)
    paired = tuple(map(Path, run.recipe.get("prompts", {}).get("paired", [])))
    cached = Path(run.facts["cache_folder"]) / "prompts.txt"
    return (paired, (cached,)) if cached.is_file() else (paired,)


def _of_package(model: ModelFolder, package: Package, description: ModelDescription | None) -> EvaluationTarget:
    manifest = package.manifest
    # paths of the machine that exported it mean nothing here
    recipe = {
        section: {key: value for key, value in keys.items() if (section, key) not in PATHS}
        for section, keys in manifest.recipe.items()
        if isinstance(keys, dict)
    }
    captions = manifest.facts.get("captions")
    files = (package.folder / captions,) if captions in manifest.files else ()
    return EvaluationTarget(
        model,
        description=description,
        package=package,
        recipe=recipe,
        judge=_judge_of_package(package),
        prompt_files=(files,),
    )


def _judge_of_package(package: Package) -> Path | None:
    """The judge in the package; else that of its teacher, recognised by its digest beside a teacher on this machine."""
    folder = package.folder / JUDGE_FOLDER
    if f"{JUDGE_FOLDER}/config.json" in package.manifest.files:
        for name in JUDGE_FILES:
            if name == "model.safetensors" or (folder / name).exists() or (folder / name).is_symlink():
                package.file(f"{JUDGE_FOLDER}/{name}")  # listed, regular, inside
        return folder
    judge = package.manifest.facts.get("judge")
    if not isinstance(judge, dict) or "digest" not in judge:
        return None
    for teacher in _teachers_here(str(judge.get("teacher", ""))):
        beside = judge_of(teacher)
        if beside and judge_digest(beside) == judge["digest"]:
            return beside
    return None


def _teachers_here(name: str) -> Iterator[Path]:
    """Folders on this machine that may be the teacher of this name: the path itself, a shipped one, those of runs."""
    if name:
        yield Path(name)
        yield TEACHERS / Path(name).name
    for manifest in sorted(RUNS.glob(f"*/{NAME}")):
        try:
            yield Path(read_json(manifest)["recipe"]["teacher"]["path"])
        except (RcdeployError, KeyError, TypeError):  # a damaged run says nothing about this package
            continue
