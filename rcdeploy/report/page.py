"""One HTML file about a run and its package: what it draws, what it costs, how it came about. It needs nothing else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
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

from ..conditioning import recipe_probability
from ..diffusion_model import LatentDiffusionModel
from ..machine import describe
from ..plots import loss_svg, probability_svg
from ..progress import Progress
from ..recipe import Conditioning, Student
from ..recipe_file import portable
from ..student.spec import describe_removed
from ..units import bytes_text, seconds_text
from .bars import bench_bars, cost_bars
from .opened import PROMPTS, Opened, open_run, own_prompts
from .side_by_side import frames, side_by_side
from .unet_diagram import diagram


def write_report(
    run: Path,
    out: Path,
    *,
    package: Path | None = None,
    bench: Path | None = None,
    prompts: Sequence[str] = (),
    draw: bool = True,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Writes the page `out`; returns its key figures and its notes.

    bench: a file that `rcdeploy bench --json` wrote. prompts: of the pictures, instead of the run's own. draw: False
    leaves out the pictures that networks would have to draw. Raises RcdeployError when `run` is no run, `package` no
    package, or `bench` no such file.
    """
    if out.is_dir():
        raise RcdeployError(f"{out} is a folder; the report is a file", fix=f"Try --out {out / 'report.html'}")
    measured = read_bench(bench) if bench else None
    opened = open_run(run, package)
    pictures = _pictures(opened, prompts, progress) if draw else None
    facts = _facts(opened, measured, pictures)
    with replacing(out) as beside:
        beside.write_text(_template().render(facts), encoding="utf-8")
    figures = {tile["label"]: ", ".join(filter(None, (tile["value"], tile["detail"]))) for tile in facts["tiles"]}
    return {"report": str(out), "bytes": out.stat().st_size, "figures": figures, "notes": opened.notes}


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
    """What the page shows of a file that `rcdeploy bench --json` wrote. Raises RcdeployError for any other file."""
    data = read_json(file)
    try:
        about = {key: data["machine"][key] for key in ("processor", "cores")}
        keys = ("height", "width", "num_inference_steps", "guidance_scale", "threads", "device")
        return {**about, **{key: data["settings"][key] for key in keys}, "bars": bench_bars(data)}
    except (KeyError, TypeError, AttributeError):
        fix = f"Make one: rcdeploy bench --json > {file}"
        raise RcdeployError(f"{file} is no result of rcdeploy bench", fix=fix) from None


def _facts(opened: Opened, bench: dict[str, Any] | None, pictures: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that the template shows."""
    manifest, best, evaluate = opened.manifest, opened.best, opened.evaluate
    package = opened.package.manifest if opened.package else None
    facts = package.facts if package else {}
    recipe, c = manifest.recipe, manifest.recipe["conditioning"]
    p = recipe_probability(Conditioning(**c))
    bars = cost_bars(opened.costed(), opened.size, evaluate["num_inference_steps"], evaluate["guidance_scale"])
    teacher, student = opened.teacher.unet_config if opened.teacher else None, opened.student_config
    return {
        "name": recipe["name"],
        "student": f"width × {w:g}" if (w := recipe["student"]["width"]) else recipe["student"]["name"],
        "teacher": manifest.teacher.get("id", "a teacher"),
        "today": date.today().isoformat(),
        "step": opened.step,
        "notes": opened.notes,
        "tiles": _tiles(opened, bars),
        "pictures": pictures,
        "frames": frames(opened.folder / "samples"),
        "grid_prompts": own_prompts(opened),
        "losses": Markup(loss_svg(opened.metrics, best["step"] if best else None)) if opened.metrics else None,
        "validation": [(f"{m['step']:,}", f"{m['validation']:#.4g}") for m in opened.metrics if "validation" in m],
        "best": best,
        "conditioning": c,
        "replaced": float(np.mean(p(np.arange(1000) / 1000))),
        "p": Markup(probability_svg(p)),
        "bars": bars,
        "image": {"size": opened.size, **evaluate},
        "bench": bench,
        "package": package,
        "sizes": {c: package.size_of(c) for c in package.facts["precision"]} if package else {},
        "seconds_per_step": [(k, seconds_text(v)) for k, v in (facts.get("seconds_per_step") or {}).items()],
        "error_by_timestep": [
            (f"{e['timestep']:.0f}", f"{e['relative_error']:#.2g}") for e in facts.get("unet_error_by_timestep") or []
        ],
        "removed": describe_removed(Student(**recipe["student"]).spec, teacher) if teacher else None,
        "diagram": Markup(diagram(teacher, student)) if teacher and student else None,
        "recipe": recipe_text(recipe),
        "machines": _machines(manifest.facts.get("machine")),
        "version": __version__,
        "provenance": _provenance(opened),
    }


def _machines(trained_on: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """What to call a machine, and its facts; one where training and page were made on the same."""
    here = describe()
    if trained_on == here:
        return [("The machine that trained it and made this page", here)]
    return [
        *([("The machine that trained it", trained_on)] if trained_on else []),
        ("The machine that made this page", here),
    ]


SCORES = {"validation": "Validation loss", "fid": "FID", "judge.all": "Judged right, of 1"}
"""what to call the figure that says which step is best"""


def _tiles(opened: Opened, bars: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The key figures: the student's share of each cost, its training, the package's size and error."""
    tiles = []
    for group in bars:
        found = {row["name"]: row for row in group["rows"]}
        if group["key"] in ("parameters", "macs") and (row := found.get("student")):
            share = f"{100 * row['share']:.1f} % of the teacher's" if row["share"] is not None else ""
            tiles.append({"label": group["title"].partition(",")[0], "value": row["text"], "detail": share})
    timed = [m["seconds_per_step"] for m in opened.metrics if "seconds_per_step" in m]
    pace = f"{np.median(timed):.3g} s each" if timed else ""
    tiles.append({"label": "Training steps", "value": f"{opened.step:,}", "detail": pace})
    if best := opened.best:
        detail = f"at step {best['step']:,}, the best one"
        tiles.append({"label": SCORES[opened.score], "value": f"{best[opened.score]:#.4g}", "detail": detail})
    if opened.package:
        manifest = opened.package.manifest
        facts = manifest.facts
        size, precision = bytes_text(manifest.size_of()), facts["precision"]["unet"]
        tiles.append({"label": "Package", "value": size, "detail": f"{facts['target']}, UNet in {precision}"})
        worst = max(p["relative_error"] for p in facts["parity"])
        tiles.append({"label": "Largest error", "value": f"{worst:.1e}", "detail": "relative, package against torch"})
    return tiles


def _provenance(opened: Opened) -> list[tuple[str, str]]:
    manifest = opened.manifest
    rows = [("manifest of the run", sha256(opened.folder / NAME)), ("teacher", manifest.teacher.get("revision", ""))]
    rows += [(m["kind"].replace("_", " "), m["sha256"]) for m in manifest.made_from]
    if opened.package:
        rows.append(("manifest of the package", sha256(opened.package.folder / NAME)))
        rows += [(f"its {m['kind']}", m["sha256"]) for m in opened.package.manifest.made_from]
    return rows


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe as TOML; of files and folders the names alone, for the page goes to other machines."""
    lines = [f"name = {json.dumps(recipe['name'], ensure_ascii=False)}"]
    for section, keys in portable(recipe).items():
        if isinstance(keys, dict):
            lines += ["", f"[{section}]"]
            for key, value in keys.items():
                unset = "# " if value is None else ""
                lines.append(f"{unset}{key} = {'...' if unset else json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)


def _pictures(opened: Opened, given: Sequence[str], progress: Progress) -> dict[str, Any] | None:
    """Teacher, student and package side by side, or a note on why not."""
    prompts = list(given or own_prompts(opened))[:PROMPTS]
    if not prompts:
        opened.notes.append("The run's prompts are not on this machine: give --prompt for pictures side by side.")
        return None
    models: dict[str, LatentDiffusionModel | TextToImage | None] = {
        "teacher": opened.teacher,
        "student": opened.student,
    }
    models["package"] = TextToImage(opened.package) if opened.package else None
    here = {name: model for name, model in models.items() if model is not None}
    if not here:
        return None
    settings = {key: opened.evaluate[key] for key in ("num_inference_steps", "guidance_scale")}
    seed = int(opened.evaluate["seed"])

    def drawn(done: int, of: int) -> None:
        progress("pictures", done, of, {})

    with warnings.catch_warnings(record=True) as remarks:  # prompts that were cut
        warnings.simplefilter("always", UserWarning)
        pictures = side_by_side(here, prompts, seed, opened.size, settings, drawn)
    opened.notes += dict.fromkeys(str(r.message) for r in remarks if r.category is UserWarning)
    return pictures
