"""Resolve a command-line argument to a run, a package, a diffusers folder or a named student."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import KINDS as MANIFEST_KINDS
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.sampling_defaults import SamplingDefaults, SamplingFacts

from .model_config import check_no_checkpoint
from .student.built_in import DEFAULT_TEACHER, SD21, TEACHERS, named_model
from .student.spec import fitting_students

Kind = Literal["run", "package", "pipeline", "student"]
KINDS: tuple[Kind, ...] = ("run", "package", "pipeline", "student")
TITLES: dict[Kind, str] = {
    "run": "a run",
    "package": "a package",
    "pipeline": "a diffusers folder",
    "student": "the name of a student",
}
"""what messages call each kind"""
RUNS = Path("runs")
MODEL_INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, or a student by name; nothing is loaded and no weights are read.

    Attributes:
        kind: run, package, pipeline (a diffusers folder) or student (built-in teachers too).
        name: of the folder, for titles and file names.
        source: as the user gave it.
        path: the folder, or a package's .zip; None for a student, which has no weights.
        pipeline: the folder in diffusers' layout: a run's pipeline/ (None before the run has written it), the folder
            itself for a pipeline; None for packages and students.
        manifest: of a run or of a package's folder; None for a .zip and for what has none.
    """

    kind: Kind
    name: str
    source: str
    path: Path | None = None
    pipeline: Path | None = None
    manifest: Manifest | None = None

    @property
    def sampling(self) -> SamplingDefaults | None:
        """How the model wants to be sampled, as its manifest records it; None where nothing is recorded."""
        return self.manifest.facts_as(SamplingFacts).sampling if self.manifest else None

    def require_pipeline(self) -> Path:
        """The folder in diffusers' layout. Raises RcdeployError for a run that has not written one, and for kinds
        that have none."""
        if self.pipeline is not None:
            return self.pipeline
        if self.kind == "run":
            raise RcdeployError(
                f"{self.source} has no pipeline/ yet: its training has not ended",
                fix="Run the same rcdeploy distill command again; it resumes where it stopped.",
            )
        raise RcdeployError(
            f"{self.source} is {TITLES[self.kind]}, which holds no diffusers pipeline",
            fix="Give a run or a diffusers folder.",
        )


def resolve(argument: str | Path | None, kinds: Collection[str] = KINDS, runs: Path = RUNS) -> ModelFolder:
    """Find out what an argument names, from its manifest.json, its model_index.json, or the list of students.

    Args:
        argument: a path, the name of a student of SD-1.4, TEACHER:STUDENT, or a built-in teacher (sd-1.4, sd-2.1 ...);
            None for the newest run below `runs`.
        kinds: the kinds that the caller can use.

    Raises:
        RcdeployError: nothing is there, the folder holds no model, or the model is of another kind.
    """
    model = _identify(str(newest_run(runs) if argument is None else argument))
    if model.kind not in kinds:
        expected = [TITLES[kind] for kind in KINDS if kind in kinds]
        raise RcdeployError(
            f"{model.source} is {TITLES[model.kind]}",
            fix=f"Expected here: {' or '.join(expected)}.",
        )
    return model


def resolve_all(arguments: Sequence[str], runs: Path = RUNS) -> list[ModelFolder]:
    """Each argument once, two of one name told apart by their paths.

    Without arguments: the newest run below `runs`, preceded by its teacher if that is on this machine.
    """
    if not arguments:
        run = newest_run(runs)
        teacher = str(Manifest.read(run, "run").recipe.get("teacher", {}).get("path") or "")
        arguments = [str(run)] if not _is_model_folder(Path(teacher)) else [teacher, str(run)]
    models = [resolve(argument) for argument in dict.fromkeys(arguments)]
    names = [model.name for model in models]
    return [m if names.count(m.name) == 1 else replace(m, name=m.source) for m in models]


def newest_run(runs: Path = RUNS) -> Path:
    """The run below `runs` whose pipeline was written last. Raises RcdeployError when none is finished."""
    finished = [m.parent for m in runs.glob(f"*/{NAME}") if (m.parent / "pipeline" / MODEL_INDEX).is_file()]
    if not finished:
        raise RcdeployError(
            f"there is no finished run in {runs.resolve()}",
            fix="Make one with: rcdeploy distill recipes/quickstart.toml. Or give the folder of a model.",
        )
    return max(finished, key=lambda run: (run / "pipeline").stat().st_mtime)


def _is_model_folder(path: Path) -> bool:
    return (path / NAME).is_file() or (path / MODEL_INDEX).is_file()


def _identify(source: str) -> ModelFolder:
    if source == "teacher" or named_model(source):  # `rcdeploy students` lists SD-1.4 as "teacher"
        return ModelFolder("student", DEFAULT_TEACHER if source == "teacher" else source, source)
    path = Path(source)
    if not path.exists():
        raise _nothing_there(source)
    check_no_checkpoint(path)
    name = path.resolve().name
    kind = _manifest_kind(path)
    if path.is_file():  # a package's .zip; what else it may be is found out by whoever opens it
        return ModelFolder("package", name, source, path)
    if kind == "package":
        return ModelFolder("package", name, source, path, manifest=Manifest.read(path, "package"))
    if kind == "run":
        if _manifest_kind(path.resolve().parent) == "run":  # a later stage of the run that it lies in
            name = f"{path.resolve().parent.name}-{name}"
        pipeline = path / "pipeline" if (path / "pipeline" / MODEL_INDEX).is_file() else None
        return ModelFolder("run", name, source, path, pipeline, Manifest.read(path, "run"))
    if kind in MANIFEST_KINDS:
        raise RcdeployError(
            f"{source} is a {kind}, which holds no model",
            fix="Give a run, a package, a diffusers folder, or the name of a student.",
        )
    if (path / MODEL_INDEX).is_file():
        return ModelFolder("pipeline", name, source, path, path)
    raise RcdeployError(
        f"{source} is neither a run, nor a package, nor a diffusers folder: it has no {NAME} of ours "
        f"and no {MODEL_INDEX}",
        fix="Give a folder under runs/ or packages/, or one that StableDiffusionPipeline.save_pretrained wrote.",
    )


def _manifest_kind(path: Path) -> str | None:
    """The kind in the folder's manifest; None without one of ours (other tools write manifest.json too)."""
    if not (path / NAME).is_file():
        return None
    data = read_json(path / NAME)
    kind = data.get("kind") if isinstance(data, dict) else None
    return kind if isinstance(kind, str) else None


def _nothing_there(source: str) -> RcdeployError:
    students = fitting_students(TEACHERS[DEFAULT_TEACHER]["unet"])
    names = [*students, *TEACHERS, *(f"{teacher}:{student}" for teacher in TEACHERS for student in students)]
    near = difflib.get_close_matches(source.lower(), names, 1, 0.6)
    hint = f"Did you mean {near[0]}? " if near else ""
    return RcdeployError(
        f"{source} is no file or folder here, and no student of SD-1.4",
        fix=f"{hint}Students: {', '.join(students)}, or of another teacher: {SD21}:{students[0]}. "
        f"Teachers: {', '.join(TEACHERS)}.",
    )
