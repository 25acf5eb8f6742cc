"""The report: the page agrees with manifest and metrics, and needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEFAULTS, FURTHER, PAIRED, toml
from PIL import Image
from test_card import write_scores
from typer.testing import CliRunner

from rcdeploy.bench.macs import parameters, unet_macs
from rcdeploy.cli.main import app
from rcdeploy.machine import describe
from rcdeploy.report.page import ReportOptions, _machines, write_report
from rcdeploy.report.run_data import RunData, read_run
from rcdeploy.student.build import build_on_meta
from rcdeploy.units import bytes_text, count_text
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256, write_json
from rcdeploy_runtime.manifest import Manifest

EVIL = 'a <script>alert("1")</script> & a red bag'
PROMPTS = [EVIL, "a blue shoe"]
FOREIGN_PACKAGE = "The package was made from another run, or from another state of this one."


class Page(HTMLParser):
    """A parsed page: elements with their attributes, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw_text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.raw_text += " "  # table cells are separate, whatever is between them in the source

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] != [("style", {})]:
            self.raw_text += data

    @property
    def text(self) -> str:
        return " ".join(self.raw_text.split())

    def images(self, start: str) -> list[Image.Image]:
        """Those whose alternative text begins with `start`."""
        sources = [a["src"] for tag, a in self.elements if tag == "img" and str(a["alt"]).startswith(start)]
        return [Image.open(io.BytesIO(base64.b64decode(str(src).partition("base64,")[2]))) for src in sources]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, small_model: Path, package: Path) -> Iterator[Path]:
    """A folder with run/ (six steps, a grid after every two) and package/, which is its teacher's."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "paired.txt").write_text("".join(f"{p}\n" for p in PAIRED))
    (folder / "further.txt").write_text("".join(f"{p}\n" for p in FURTHER))
    recipe = {**DEFAULTS, "teacher": {"path": str(small_model)}}
    recipe["prompts"] = {"paired": ["paired.txt"], "pool": ["further.txt"], "paired_count": 12}
    recipe["cache"] = {**DEFAULTS["cache"], "folder": "cache"}
    recipe["evaluate"] = {**DEFAULTS["evaluate"], "every": 2, "prompts": PROMPTS, "seed": 5, "guidance_scale": 3.0}
    (folder / "tiny.toml").write_text(toml(recipe))
    (folder / "package").symlink_to(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, ["distill", "tiny.toml", "--out", "run", "-q"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        yield folder


@pytest.fixture(scope="module")
def page(reported: Path) -> Page:
    result = CliRunner().invoke(app, ["report", "run", "package", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["report"] == "run/report.html"
    return Page(reported / "run" / "report.html")


# --- the page ---------------------------------------------------------------------------------------------------------


def test_every_model_generates_every_prompt_from_the_same_noise(page: Page) -> None:
    student, package = page.images("student: "), page.images("package: ")
    teacher = page.images("teacher: ")[: len(PROMPTS)]  # the others are those of the training's grids
    assert len(student) == len(package) == len(teacher) == len(PROMPTS)
    largest = 0
    for images in zip(student, package, teacher, strict=True):
        by_student, by_package, by_teacher = (np.asarray(image, int) for image in images)
        assert by_teacher.shape == (64, 64, 3)
        assert abs(by_package - by_teacher).max() <= 1, "the package is the teacher's, and started from other noise"
        largest = max(largest, abs(by_package - by_student).max())
    assert largest > 1, "the student's image is not made by the student"
    assert f"differ from the student's by at most {largest} of 255 grey levels" in page.text


def test_training_is_on_the_page_step_by_step(page: Page, reported: Path) -> None:
    steps = [2, 4, 6]
    assert [a["id"] for tag, a in page.elements if tag == "input"] == [f"step-{s}" for s in steps]
    for step in steps:
        assert len(page.images(f"step {step}: ")) == len(PROMPTS)
        assert f"#step-{step}:checked ~ .strip .step-{step}" in page.source
    for prompt in PROMPTS:
        assert f'<span class="caption">{html.escape(prompt, quote=False)}' in page.source.replace("&#34;", '"')
    metrics = [json.loads(line) for line in (reported / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        if "validation" in line:
            assert f"{line['validation']:#.4g}" in page.text
    assert page.source.count("<svg") == 3, "losses, p(t), and the UNet"
    for name in ("loss", "output", "feature", "validation"):
        assert f">{name}</text>" in page.source


def test_costs_are_those_that_are_counted(page: Page, reported: Path, small_model: Path) -> None:
    configs = [read_json(folder / "unet" / "config.json") for folder in (small_model, reported / "run" / "pipeline")]
    teacher, student = (build_on_meta(c) for c in configs)
    for unet in (teacher, student):
        assert count_text(parameters(unet)) in page.text
        assert count_text(unet_macs(unet, None, 16).thop) in page.text
        assert count_text(unet_macs(unet, None, 16).total) in page.text
    share = 100 * parameters(student) / parameters(teacher)
    assert f"{count_text(parameters(student))} {share:.1f} %" in page.text
    widths = [float(m) for m in re.findall(r'<i style="width: ([0-9.]+)%"', page.source)]
    assert widths[0] == 100
    assert widths[1] == pytest.approx(share, abs=0.01)


def test_parity_and_sizes_are_the_manifests(page: Page, reported: Path) -> None:
    manifest = read_json(reported / "package" / "manifest.json")
    for row in manifest["facts"]["parity"]:
        name = row["component"]
        size = sum(f["size"] for file, f in manifest["files"].items() if file.startswith(name + "/"))
        expected = f"{name} fp32 {bytes_text(size)} {row['max_abs_error']:.1e} {row['relative_error']:.1e}"
        assert expected in page.text


def test_recipe_machine_and_origin_are_named(page: Page, reported: Path) -> None:
    for line in ('name = "tiny"', 'paired = ["paired.txt"]', "max_steps = 6", 'probability = "exponential"'):
        assert line in page.raw_text
    for folder in ("run", "package"):
        assert sha256(reported / folder / "manifest.json") in page.text
    assert "torch" in page.text
    assert "The machine that trained it and made this page" in page.raw_text
    assert str(reported.parent) not in page.source, "a path of this machine"


def test_two_machines_are_listed_apart() -> None:
    elsewhere = {**describe(), "processor": "another one"}
    assert [facts["processor"] for _, facts in _machines(elsewhere)][0] == "another one"
    assert len(_machines(elsewhere)) == 2 and len(_machines(None)) == len(_machines(describe())) == 1


def test_the_page_needs_no_other_file(page: Page) -> None:
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object", "base")]
    assert "http" not in page.source
    assert "@import" not in page.source
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert str(value).startswith(("data:image/webp;base64,", "#")), value
    assert all(inner.startswith("#") for inner in re.findall(r"url\(([^)]*)\)", page.source))
    assert all(a["alt"] for tag, a in page.elements if tag == "img")


def test_prompts_are_escaped(page: Page) -> None:
    assert "<script" not in page.source
    assert EVIL in page.raw_text
    assert "more than 16 tokens" in page.text, "the runtime's warning is missing on the page"
    assert f"student: {EVIL}" in [a["alt"] for tag, a in page.elements if tag == "img"]


# --- runs that lack something -----------------------------------------------------------------------------------------


def test_a_run_that_has_not_ended(reported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reported / "run", run, ignore=shutil.ignore_patterns("pipeline", "*.html"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    entries = [line for line in lines if json.loads(line)["step"] <= 3]
    (run / "metrics.jsonl").write_text("".join(entries) + lines[-1][:9])  # killed in the middle of a line
    result = write_report(run, tmp_path / "page.html", ReportOptions(images=False))
    assert result["notes"] == ["The training has not ended: 3 of 6 steps are done."]
    page = Page(tmp_path / "page.html")
    assert result["notes"][0] in page.text
    assert "UNet parameters" in result["figures"]
    assert page.source.count("<svg") == 3
    assert not page.images("student: ")


def test_a_run_without_random_conditioning_or_validation_claims_neither(
    page: Page, reported: Path, tmp_path: Path
) -> None:
    assert "with random conditioning" in page.text
    assert "the validation loss of the EMA" in page.text
    run = tmp_path / "run"
    shutil.copytree(reported / "run", run)
    manifest = read_json(run / "manifest.json")
    manifest["recipe"]["conditioning"]["probability"] = "none"
    write_json(run / "manifest.json", manifest)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    entries = [{k: v for k, v in entry.items() if k != "validation"} for entry in entries]
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_report(run, tmp_path / "page.html", ReportOptions(images=False))
    plain = Page(tmp_path / "page.html")
    assert "without random conditioning" in plain.text
    assert "No random conditioning: each latent keeps its own prompt; 10 % become the null condition." in plain.text
    assert "validation loss of" not in plain.text
    assert plain.source.count("<svg") == 2, "losses, and the UNet"


def test_a_run_without_its_teacher_or_with_another(reported: Path, tmp_path: Path, other_teacher: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reported / "run", run)
    manifest = read_json(run / "manifest.json")
    for path, note in ((str(tmp_path / "nowhere"), "not on this machine"), (str(other_teacher), "has changed")):
        manifest["recipe"]["teacher"]["path"] = path
        write_json(run / "manifest.json", manifest)
        result = write_report(run, tmp_path / "page.html", ReportOptions(package=reported / "package"))
        assert note in result["notes"][0]
        assert result["notes"][1] == FOREIGN_PACKAGE
        page = Page(tmp_path / "page.html")
        assert str(tmp_path) not in page.source
        assert len(page.images("student: ")) == len(page.images("package: ")) == len(PROMPTS)
        assert "100.0 %" not in page.text, "a share of nothing"


def test_prompts_of_a_run_are_found_by_the_digest_of_its_pool(reported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reported / "run", run)
    manifest = read_json(run / "manifest.json")
    manifest["recipe"]["evaluate"]["prompts"] = []
    write_json(run / "manifest.json", manifest)
    result = write_report(run, tmp_path / "page.html")
    assert "--prompt" in result["notes"][0]
    shutil.copytree(reported / "pools", tmp_path / "pools")
    write_report(run, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.images("student: ")) == 8
    assert any(prompt in page.text for prompt in FURTHER)


def test_bench_results_are_compared_with_the_teachers(reported: Path, tmp_path: Path) -> None:
    def subject(name: str, kind: str, median: float) -> dict[str, Any]:
        timing = {"median": median, "p10": median * 0.95, "p90": median * 1.1, "runs": 5}
        measurement = {"load_seconds": 1.0, "first_image_seconds": 2.0, "peak_memory_bytes": 123_000_000}
        return {"name": name, "kind": kind, "backends": {"torch": {**measurement, "timings": {"image": timing}}}}

    subjects = [subject("big", "pipeline", 0.8), subject("small", "run", 0.2), subject("twin", "run", 0.78)]
    machine = {"processor": "An <old> processor", "cores": 3}
    settings = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "threads": 2,
        "device": "cpu",
    }
    result = {"machine": machine, "settings": settings, "warnings": ["This machine was busy."], "subjects": subjects}
    write_json(tmp_path / "bench.json", result)
    write_report(reported / "run", tmp_path / "page.html", ReportOptions(bench=tmp_path / "bench.json", images=False))
    page = Page(tmp_path / "page.html")
    assert "An <old> processor, 3 cores" in page.text
    assert "This machine was busy." in page.text
    assert "small, torch 200 ms 25.0 % 190 ms to 220 ms" in page.text
    assert "twin, torch 780 ms 741 ms to 858 ms, the same within the spread" in page.text
    assert "big, torch 123.0 MB 100.0 %" in page.text
    assert "3 cores, 2 in use, cpu; 16 × 16 pixels" in page.text


def test_scores_of_evaluate_are_on_the_page(reported: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reported / "run", tmp_path / "runs" / "run"))
    data = read_run(run)
    assert data.evaluations() == [] and data.student is not None
    write_scores(tmp_path / "evaluations" / "run-1", data.student.revision, **{"judge.all": 0.451, "fid": 12.345})
    result = write_report(run, tmp_path / "page.html", ReportOptions(images=False))
    page = Page(tmp_path / "page.html")
    assert "The student, 96 images; computed with judge: judge." in page.text
    assert "FID 12.35" in page.text and "judge: all 0.4510" in page.text
    assert "rcdeploy evaluate run --prompts captions.txt" in page.text
    assert result["figures"]["FID"] == "12.35, student, 96 images"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no run nowhere"),
        (["package"], "is a package, not a run"),
        (["cache"], "is a latent_cache, which holds no model"),
        (["run", "run"], "is a run"),
        (["run", "nowhere"], "is no package"),
        (["run", "--bench", "run/manifest.json"], "is no result of rcdeploy bench"),
        (["run", "--bench", "nowhere.json"], "nowhere.json: there is no such file"),
        (["run", "--out", "package"], "package is a folder"),
    ],
)
def test_bad_input(reported: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["report", *arguments, "--no-images"])
    assert isinstance(result.exception, RcdeployError)
    assert message in result.exception.message


# --- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
FLAGS += ["--virtual-time-budget=2000"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browse(profile: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@needs_chromium
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(page: Page, reported: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """With RCDEPLOY_SCREENSHOTS set they are written to build/screenshots."""
    build = Path(__file__).parent.parent / "build" / "screenshots"
    folder = build if os.environ.get("RCDEPLOY_SCREENSHOTS") else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    screenshot = folder / f"report-{width}-{scheme}.png"
    colours = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    size = f"--window-size={width},4000"
    browse(
        tmp_path / "profile", colours, size, f"--screenshot={screenshot}", (reported / "run" / "report.html").as_uri()
    )
    pixels = np.asarray(Image.open(screenshot).convert("RGB"), int)
    assert pixels.shape[:2] == (4000, width)
    paper = pixels[2, 2].mean()
    assert paper > 250 if scheme == "light" else paper < 40
    for band in np.split(pixels[:2000], 8):  # an empty band would be a page that was not rendered
        assert abs(band - pixels[2, 2]).max() > 100
    assert (pixels[:, -8:] == pixels[2, 2]).all(), "something touches the right edge"


@needs_chromium
@pytest.mark.parametrize("width", [360, 768])
def test_no_sideways_scrolling(page: Page, tmp_path: Path, width: int) -> None:
    """Headless Chromium's windows are 500 pixels wide at least: the page is measured inside a frame."""
    script = "<script>parent.document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    source = page.source.replace("<details>", "<details open>").replace("</body>", f"{script}</body>")
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{html.escape(source)}"></iframe>')
    dom = browse(tmp_path / "profile", "--dump-dom", frame.as_uri())
    assert f"<title>{width} of {width}</title>" in dom


def test_models_whose_costs_are_counted(reported: Path) -> None:
    data = read_run(reported / "run", reported / "package")
    assert list(data.descriptions()) == ["teacher", "student", "package"]
    assert data.image_size == (64, 64)
    assert data.notes == [FOREIGN_PACKAGE]


@pytest.mark.parametrize(("score", "step"), [("validation", 2), ("fid", 4), ("judge", 6)])
def test_the_best_step_is_the_one_that_the_recipe_scores_best(score: str, step: int, tmp_path: Path) -> None:
    rows = [(2, 0.1, 30.0, 0.2), (4, 0.2, 20.0, 0.3), (6, 0.3, 40.0, 0.4)]
    metrics = [{"step": s, "validation": v, "fid": f, "judge.all": j} for s, v, f, j in rows]
    data = RunData(tmp_path, Manifest(kind="run", recipe={"evaluate": {"score": score}}), metrics)
    assert data.best and data.best["step"] == step
