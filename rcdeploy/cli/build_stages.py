"""The stages of `rcdeploy build`, from captions to a package; each knows whether it is finished."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import NAME, Manifest

from ..progress import Log, Progress
from ..recipe import Recipe
from .console import parse_size

if TYPE_CHECKING:
    from rcdeploy_export.export_options import ExportOptions

FEW_STEPS = "few_steps"
DECODER = "decoder"
REPORT = "report.html"


@dataclass(frozen=True)
class Build:
    """A recipe and where its results lie. run: the folder of the distilled student; package: of the package."""

    recipe: Recipe
    run: Path
    package: Path

    @classmethod
    def of(cls, recipe: Recipe, run: Path | None, package: Path | None) -> Build:
        """By default runs/NAME and packages/NAME-FORMAT. Raises RcdeployError for files in the way."""
        run = run or Path("runs") / recipe.name
        if package is None:
            section = recipe.export
            suffix = (
                f"{section.format}{'' if section.precision == 'fp32' else '-' + section.precision}" if section else ""
            )
            package = Path("packages") / f"{recipe.name}-{suffix or 'onnx'}"
        for folder, kind in ((run, "run"), (package, "package")):
            if folder.exists() and not folder.is_dir():
                raise RcdeployError(f"{folder} is a file; the {kind} needs a folder of that name")
        return cls(recipe, run, package)

    @property
    def student(self) -> Path:
        """The run whose pipeline is packed: that of the few-step student, if the recipe makes one."""
        return self.run / FEW_STEPS if self.recipe.few_steps else self.run

    @property
    def decoder(self) -> Path | None:
        """The folder of the tiny decoder, if the recipe makes one."""
        return self.run / DECODER if self.recipe.decoder else None

    @property
    def package_opens_here(self) -> bool:
        """Whether the recipe makes one that Python opens: those of Core ML it does not."""
        return self.recipe.export is not None and self.export_options.runs_here

    @property
    def export_options(self) -> ExportOptions:
        """Of [export]; the decoder is named when it has been trained. Raises RcdeployError for a contradiction."""
        from rcdeploy_export.export_options import ExportOptions

        section = self.recipe.export
        assert section is not None
        return ExportOptions(
            format=section.format,
            precision=section.precision,
            vae_precision=section.vae_precision,
            opset=section.opset,
            static=section.static,
            image_size=parse_size(section.size, "export.size") if section.size else None,
            external_data=section.external_data,
            measure_seconds=section.measure_seconds,
            image_count=section.pictures,
            encoder=section.encoder,
            judge=section.judge,
        )


@dataclass(frozen=True)
class Stage:
    """A part of a build.

    name: as --until and --only take it. result: the folder or file that it leaves. needs: stages whose results it
    works with. is_finished: whether the result is there, and of this recipe. run: makes it, or goes on with it.
    """

    name: str
    result: Path
    needs: tuple[str, ...]
    is_finished: Callable[[], bool]
    run: Callable[[Progress, Log], object]


def build_stages(build: Build) -> list[Stage]:
    """The stages that the recipe's sections ask for, in order."""
    recipe, run = build.recipe, build.run
    trained = ("distill", *(name for name in (FEW_STEPS, DECODER) if getattr(recipe, name)))
    stages = [
        Stage("cache", Path("caches"), (), lambda: _is_distilled(build), lambda *args: _fill_cache(recipe, *args)),
        Stage("distill", run, (), lambda: _is_distilled(build), lambda *args: _distill(build, *args)),
    ]
    if recipe.few_steps:
        stages.append(
            Stage(
                FEW_STEPS,
                run / FEW_STEPS,
                ("distill",),
                lambda: _has_few_steps(build),
                lambda *args: _train_few_steps(build, *args),
            )
        )
    if recipe.decoder:
        stages.append(
            Stage(
                DECODER,
                run / DECODER,
                (),
                lambda: _has_decoder(build),
                lambda *args: _train_decoder(build, *args),
            )
        )
    if recipe.export:
        stages.append(
            Stage("export", build.package, trained, lambda: _is_packed(build), lambda *args: _export(build, *args))
        )
    report = run / REPORT
    before = (*trained, "export") if recipe.export else trained
    stages.append(Stage("report", report, before, lambda: _is_reported(build), lambda p, _log: _report(build, p)))
    return stages


def chosen_stages(stages: Sequence[Stage], until: str | None, only: str | None) -> list[Stage]:
    """Raises RcdeployError for the name of no stage, and for one that the recipe does not have."""
    if until and only:
        raise RcdeployError("--until and --only exclude each other")
    names = [stage.name for stage in stages]
    for option, name in (("--until", until), ("--only", only)):
        if name is not None and name not in names:
            section = f": it has no section [{name}]" if name in (FEW_STEPS, DECODER, "export") else ""
            raise RcdeployError(
                f"{option} {name}: the recipe has no such stage{section}", fix=f"Its stages: {', '.join(names)}."
            )
    if only:
        return [stages[names.index(only)]]
    return list(stages[: names.index(until) + 1] if until else stages)


def check_needs(stage: Stage, stages: Sequence[Stage], recipe_file: Path) -> None:
    """Raises RcdeployError when a stage that this one works with is not finished."""
    unfinished = [s.name for s in stages if s.name in stage.needs and not s.is_finished()]
    if unfinished:
        raise RcdeployError(
            f"the stage {stage.name} needs {' and '.join(unfinished)}, which "
            f"{'is' if len(unfinished) == 1 else 'are'} not finished",
            fix=f"Run all that comes before: rcdeploy build {recipe_file} --until {stage.name}",
        )


def remove_result(stage: Stage) -> None:
    """For --restart: removes what a training stage has left; other results are replaced when they are made again.

    Raises RcdeployError when another process is at work there, or the folder is not a stage's.
    """
    folder = stage.result
    if stage.name not in ("distill", FEW_STEPS, DECODER) or not (folder / NAME).is_file():
        return
    from ..run_folder import exclusive

    with exclusive(folder):
        Manifest.read(folder, "decoder" if stage.name == DECODER else "run")
        shutil.rmtree(folder)


def _fill_cache(recipe: Recipe, progress: Progress, log: Log) -> None:
    from .. import cache_latents
    from ..distill.build_run import load_teacher, make_accelerator
    from ..prompts.recipe_pool import paired_sources

    teacher = load_teacher(recipe.teacher, make_accelerator(recipe.train, Path("runs")))
    folder = cache_latents.prepare(recipe, teacher, paired_sources(recipe, log), log)
    cache_latents.fill(folder, recipe.cache, teacher, progress, log)


def _is_distilled(build: Build) -> bool:
    from ..run_folder import finished_steps

    return finished_steps(build.run, build.recipe) is not None


def _distill(build: Build, progress: Progress, log: Log) -> object:
    from ..distill.loop import distill

    return distill(build.recipe, build.run, progress, log)


def _has_few_steps(build: Build) -> bool:
    """Of the student that is there now: another one makes it unfinished."""
    from ..run_folder import finished_steps

    folder = build.run / FEW_STEPS
    if finished_steps(folder, build.recipe, FEW_STEPS) is None:
        return False
    weights = build.run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    recorded = {origin["kind"]: origin["sha256"] for origin in Manifest.read(folder, "run").made_from}
    return weights.is_file() and recorded.get("distilled_student") == sha256(weights)


def _train_few_steps(build: Build, progress: Progress, log: Log) -> object:
    from ..few_steps.train import train_few_steps

    return train_few_steps(build.recipe, build.run / FEW_STEPS, progress, log)


def _has_decoder(build: Build) -> bool:
    folder = build.run / DECODER
    if not (folder / NAME).is_file() or build.recipe.decoder is None:
        return False
    manifest = Manifest.read(folder, "decoder")
    section = build.recipe.decoder.model_dump(mode="json")
    return bool(manifest.facts.get("finished")) and manifest.recipe.get(DECODER) == section


def _train_decoder(build: Build, progress: Progress, log: Log) -> object:
    from ..decoder.train import train_decoder

    return train_decoder(build.recipe, build.run / DECODER, progress, log)


def _is_packed(build: Build) -> bool:
    """By the [export] of this recipe, from the results that are there now."""
    if not (build.package / NAME).is_file():
        return False
    package = Manifest.read(build.package, "package")
    recorded = {origin["kind"]: origin["sha256"] for origin in package.made_from}
    return (
        (build.student / NAME).is_file()
        and recorded.get("run") == sha256(build.student / NAME)
        and recorded.get(DECODER) == _decoder_digest(build)
        and package.facts.get("export") == build.export_options.as_facts()
        and not package.wrong_files(build.package, contents=False)
    )


def _decoder_digest(build: Build) -> str | None:
    """As packages record it; None where the recipe makes no decoder."""
    return Manifest.read(build.decoder, "decoder").digest if build.decoder else None


def _export(build: Build, progress: Progress, _log: Log) -> None:
    """The package with its model card; and one .zip beside it, if the recipe says so."""
    from rcdeploy_export.package import export_package, zip_package
    from rcdeploy_export.source import ExportSource

    from ..report.card import CardOptions, write_card

    options = dataclasses.replace(build.export_options, decoder=build.decoder)
    export_package(ExportSource.open(build.student), build.package, options, progress)
    teacher = Path(build.recipe.teacher.path)
    write_card(build.package, CardOptions(teacher=teacher if teacher.is_dir() else None))
    if build.recipe.export and build.recipe.export.zip:
        zip_package(build.package, build.package.with_name(build.package.name + ".zip"))


def _is_reported(build: Build) -> bool:
    """Not older than what it tells of."""
    page = build.run / REPORT
    told = [build.student / NAME, *([build.package / NAME] if build.recipe.export else [])]
    return page.is_file() and all(f.is_file() and f.stat().st_mtime_ns <= page.stat().st_mtime_ns for f in told)


def _report(build: Build, progress: Progress) -> dict[str, Any]:
    from ..report.page import ReportOptions, write_report

    options = ReportOptions(package=build.package if build.package_opens_here else None)
    return write_report(build.student, build.run / REPORT, options, progress)
