"""One HTML file about a run and its package: its images, costs, scores and origin. The page needs no other file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from rcdeploy_runtime import __version__
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, replacing, sha256
from rcdeploy_runtime.manifest import NAME
from rcdeploy_runtime.text_to_image import TextToImage

from ..bench.latency import sampling_text
from ..conditioning import recipe_probability
from ..diffusion_model import LatentDiffusionModel
from ..machine import describe
from ..plots import loss_svg, probability_svg
from ..progress import Progress, no_progress
from ..recipe import Conditioning
from ..recipe_file import portable
from ..recipe_student import Student
from ..student.spec import describe_removed
from ..units import bytes_text, seconds_text
from .bars import bench_bars, cost_bars
from .run_data import MAX_PROMPTS, RunData, read_run
from .side_by_side import side_by_side, training_frames
from .tiles import tiles
from .unet_diagram import diagram


@dataclass(frozen=True)
class ReportOptions:
    """The content of a page.

    Attributes:
        package: made from the run.
        bench: a file with what `rcdeploy bench --json` printed.
        prompts: of the images, instead of the run's own.
        images: False leaves out those that networks would have to generate.
    """

    package: Path | None = None
    bench: Path | None = None
    prompts: Sequence[str] = ()
    images: bool = True


def write_report(
    run: Path, file: Path, options: ReportOptions | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write the page, and return its path, size, key figures and notes.

    Raises:
        RcdeployError: `run` is no run, options.package no package, options.bench no result of bench.
    """
    options = options or ReportOptions()
    if file.is_dir():
        raise RcdeployError(f"{file} is a folder; the report is a file", fix=f"Try --out {file / 'report.html'}")
    bench = read_bench(options.bench) if options.bench else None
    data = read_run(run, options.package)
    comparison = _compare(data, options.prompts, progress) if options.images else None
    values = _values(data, bench, comparison)
    with replacing(file) as beside:
        beside.write_text(_template().render(values), encoding="utf-8")
    figures = {tile["label"]: ", ".join(filter(None, (tile["value"], tile["detail"]))) for tile in values["tiles"]}
    return {"report": str(file), "bytes": file.stat().st_size, "figures": figures, "notes": data.notes}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes_text"] = bytes_text
    return environment.get_template("report.html")


def read_bench(file: Path) -> dict[str, Any]:
    """What the page has of a file with the output of `rcdeploy bench --json`. Raises RcdeployError for other files."""
    result = read_json(file)
    try:
        machine = {key: result["machine"][key] for key in ("processor", "cores")}
        keys = ("height", "width", "num_inference_steps", "guidance_scale", "threads", "device")
        settings = {key: result["settings"][key] for key in keys}
        return {
            **machine,
            **settings,
            "sampling": sampling_text(settings),
            "bars": bench_bars(result),
            "warnings": list(result.get("warnings", [])),
        }
    except (KeyError, TypeError, AttributeError):
        fix = f"Make one: rcdeploy bench --json > {file}"
        raise RcdeployError(f"{file} is no result of rcdeploy bench", fix=fix) from None


def _values(data: RunData, bench: dict[str, Any] | None, comparison: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that the template uses."""
    manifest = data.manifest
    recipe = manifest.recipe
    student = Student(**recipe["student"])
    p = recipe_probability(Conditioning(**recipe["conditioning"]))
    bars = cost_bars(data.descriptions(), data.image_size, data.samplings)
    evaluations = data.evaluations()
    teacher_config = data.teacher.unet_config if data.teacher else None
    best = data.best
    return {
        "name": recipe["name"],
        "student": student.label,
        "teacher": manifest.teacher.get("id", "a teacher"),
        "today": date.today().isoformat(),
        "step": data.step,
        "notes": data.notes,
        "tiles": tiles(data, bars, evaluations),
        "evaluations": evaluations,
        "comparison": comparison,
        "frames": training_frames(data.folder / "samples"),
        "grid_prompts": data.prompts(),
        "losses": Markup(loss_svg(data.metrics, best["step"] if best else None)) if data.metrics else None,
        "validation": [(f"{m['step']:,}", f"{m['validation']:#.4g}") for m in data.metrics if "validation" in m],
        "best": best,
        "conditioning": recipe["conditioning"],
        "replaced": float(np.mean(p(np.arange(1000) / 1000))),
        "p": Markup(probability_svg(p)),
        "bars": bars,
        "image": {"size": data.image_size, "samplings": _sampling_texts(data)},
        "bench": bench,
        "removed": describe_removed(student.spec, teacher_config) if teacher_config else None,
        "diagram": _diagram(teacher_config, data.student_config),
        **_package_values(data),
        "recipe": recipe_text(recipe),
        "machines": _machines(manifest.facts.get("machine")),
        "version": __version__,
        "provenance": _provenance(data),
    }


def _diagram(teacher: Mapping[str, Any] | None, student: Mapping[str, Any] | None) -> Markup | None:
    return None if teacher is None or student is None else Markup(diagram(teacher, student))


def _sampling_texts(data: RunData) -> list[str]:
    """ "teacher: 25 steps of ddim, guidance 7.5" of each model; one text without a name where all are the same."""
    samplings = data.samplings if data.package else {name: data.samplings[name] for name in ("teacher", "student")}
    if len(set(samplings.values())) == 1:
        return [str(samplings["student"])]
    return [f"{name}: {sampling}" for name, sampling in samplings.items()]


def _package_values(data: RunData) -> dict[str, Any]:
    package = data.package.manifest if data.package else None
    facts = package.facts if package else {}
    return {
        "package": package,
        "sizes": {name: package.size_of(name) for name in facts["precision"]} if package else {},
        "seconds_per_step": [(k, seconds_text(v)) for k, v in (facts.get("seconds_per_step") or {}).items()],
        "error_by_timestep": [
            (f"{e['timestep']:.0f}", f"{e['relative_error']:#.2g}") for e in facts.get("unet_error_by_timestep") or []
        ],
    }


def _machines(training_machine: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """(title, facts) of the machines; a single one where training and page were made on the same."""
    this_machine = describe()
    if training_machine == this_machine:
        return [("The machine that trained it and made this page", this_machine)]
    trained = [("The machine that trained it", training_machine)] if training_machine else []
    return [*trained, ("The machine that made this page", this_machine)]


def _provenance(data: RunData) -> list[tuple[str, str]]:
    manifest = data.manifest
    rows = [("manifest of the run", sha256(data.folder / NAME)), ("teacher", manifest.teacher.get("revision", ""))]
    rows += [(origin["kind"].replace("_", " "), origin["sha256"]) for origin in manifest.made_from]
    if data.package:
        rows.append(("manifest of the package", sha256(data.package.folder / NAME)))
        rows += [(f"its {origin['kind']}", origin["sha256"]) for origin in data.package.manifest.made_from]
    return rows


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe as TOML; of files and folders the names alone, for the page goes to other machines."""
    lines = [f"name = {json.dumps(recipe['name'], ensure_ascii=False)}"]
    for section, keys in portable(recipe).items():
        if isinstance(keys, dict):
            lines += ["", f"[{section}]"]
            for key, value in keys.items():
                unset = value is None
                lines.append(f"# {key} = ..." if unset else f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)


def _compare(data: RunData, prompts: Sequence[str], progress: Progress) -> dict[str, Any] | None:
    """Teacher, student and package side by side; None, and a note, where there are no prompts."""
    prompts = list(prompts or data.prompts())[:MAX_PROMPTS]
    if not prompts:
        data.notes.append("The run's prompts are not on this machine: give --prompt for images side by side.")
        return None
    candidates: dict[str, LatentDiffusionModel | TextToImage | None] = {
        "teacher": data.teacher,
        "student": data.student,
        "package": TextToImage(data.package, tuned=False) if data.package else None,
    }
    models = {name: model for name, model in candidates.items() if model is not None}
    if not models:
        return None
    with warnings.catch_warnings(record=True) as remarks:  # prompts that are too long
        warnings.simplefilter("always", UserWarning)
        comparison = side_by_side(
            models, prompts, int(data.evaluate["seed"]), data.image_size, data.samplings, progress
        )
    data.notes += dict.fromkeys(str(r.message) for r in remarks if r.category is UserWarning)
    return comparison
