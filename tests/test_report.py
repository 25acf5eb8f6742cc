"""The report: what stands on the page is what stands in manifest and metrics; the page needs nothing but itself."""

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
from toy_unets import TOY, TOY_XL
from typer.testing import CliRunner

from rcdeploy.bench.macs import parameters, unet_macs
from rcdeploy.cli.main import app
from rcdeploy.machine import describe
from rcdeploy.report.opened import Opened, open_run
from rcdeploy.report.page import _machines, write_report
from rcdeploy.report.unet_diagram import Layer, diagram, layers
from rcdeploy.student.build import build_on_meta
from rcdeploy.student.sd14 import SD14_UNET_CONFIG
from rcdeploy.student.spec import student_config
from rcdeploy.units import bytes_text, count_text, seconds_text
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256, write_json
from rcdeploy_runtime.manifest import Manifest

EVIL = 'a <script>alert("1")</script> & a red bag'
PROMPTS = [EVIL, "a blue shoe"]
NOT_OURS = "The package was made from another run, or from another state of this one."


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the words."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.words += " "  # cells stand apart, whatever lies between them in the source

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] != [("style", {})]:
            self.words += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())

    def pictures(self, start: str) -> list[Image.Image]:
        """Those whose alternative text begins so."""
        sources = [a["src"] for tag, a in self.elements if tag == "img" and str(a["alt"]).startswith(start)]
        return [Image.open(io.BytesIO(base64.b64decode(str(src).partition("base64,")[2]))) for src in sources]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_model: Path, package: Path) -> Iterator[Path]:
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
def page(made: Path) -> Page:
    result = CliRunner().invoke(app, ["report", "run", "package", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["report"] == "run/report.html"
    return Page(made / "run" / "report.html")


# --- the page ---------------------------------------------------------------------------------------------------------


def test_every_model_draws_every_prompt_from_the_same_noise(page: Page) -> None:
    student, package = page.pictures("student: "), page.pictures("package: ")
    teacher = page.pictures("teacher: ")[: len(PROMPTS)]  # the others are those of the training's grids
    assert len(student) == len(package) == len(teacher) == len(PROMPTS)
    largest = 0
    for pictures in zip(student, package, teacher, strict=True):
        ours, exported, theirs = (np.asarray(picture, int) for picture in pictures)
        assert theirs.shape == (64, 64, 3)
        assert abs(exported - theirs).max() <= 1, "the package is the teacher's, and started from other noise"
        largest = max(largest, abs(exported - ours).max())
    assert largest > 1, "the student's picture is not drawn by the student"
    assert f"differ from the student's by at most {largest} of 255 grey levels" in page.text


def test_training_is_shown_step_by_step(page: Page, made: Path) -> None:
    steps = [2, 4, 6]
    assert [a["id"] for tag, a in page.elements if tag == "input"] == [f"step-{s}" for s in steps]
    for step in steps:
        assert len(page.pictures(f"step {step}: ")) == len(PROMPTS)
        assert f"#step-{step}:checked ~ .strip .step-{step}" in page.source
    metrics = [json.loads(line) for line in (made / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        if "validation" in line:
            assert f"{line['validation']:#.4g}" in page.text
    assert page.source.count("<svg") == 3, "losses, p(t), and the UNet"
    for name in ("loss", "output", "feature", "validation"):
        assert f">{name}</text>" in page.source


def test_costs_are_those_that_are_counted(page: Page, made: Path, small_model: Path) -> None:
    configs = [read_json(folder / "unet" / "config.json") for folder in (small_model, made / "run" / "pipeline")]
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


def test_parity_and_sizes_are_the_manifests(page: Page, made: Path) -> None:
    manifest = read_json(made / "package" / "manifest.json")
    for row in manifest["facts"]["parity"]:
        name = row["component"]
        size = sum(f["size"] for file, f in manifest["files"].items() if file.startswith(name + "/"))
        wanted = f"{name} fp32 {bytes_text(size)} {row['max_abs_error']:.1e} {row['relative_error']:.1e}"
        assert wanted in page.text


def test_recipe_machine_and_origin_are_named(page: Page, made: Path) -> None:
    for line in ('name = "tiny"', 'paired = ["paired.txt"]', "max_steps = 6", 'probability = "exponential"'):
        assert line in page.words
    for folder in ("run", "package"):
        assert sha256(made / folder / "manifest.json") in page.text
    assert "torch" in page.text
    assert "The machine that trained it and made this page" in page.words
    assert str(made.parent) not in page.source, "a path of this machine"


def test_the_machine_that_trained_is_told_from_the_one_that_made_the_page() -> None:
    elsewhere = {**describe(), "processor": "another one"}
    assert [facts["processor"] for _, facts in _machines(elsewhere)][0] == "another one"
    assert len(_machines(elsewhere)) == 2 and len(_machines(None)) == len(_machines(describe())) == 1


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
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


def test_words_of_users_are_words(page: Page) -> None:
    assert "<script" not in page.source
    assert EVIL in page.words
    assert "more than 16 tokens" in page.text, "what the runtime remarks stands on the page"
    assert f"student: {EVIL}" in [a["alt"] for tag, a in page.elements if tag == "img"]


# --- runs that lack something -----------------------------------------------------------------------------------------


def test_a_run_that_has_not_ended(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "run", run, ignore=shutil.ignore_patterns("pipeline", "*.html"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 3]
    (run / "metrics.jsonl").write_text("".join(kept) + lines[-1][:9])  # killed in the middle of a line
    said = write_report(run, tmp_path / "page.html", draw=False)
    assert said["notes"] == ["The training has not ended: 3 of 6 steps are done."]
    page = Page(tmp_path / "page.html")
    assert said["notes"][0] in page.text
    assert "UNet parameters" in said["figures"]
    assert page.source.count("<svg") == 3
    assert not page.pictures("student: ")


def test_a_run_without_random_conditioning_or_validation_claims_neither(page: Page, made: Path, tmp_path: Path) -> None:
    assert "with random conditioning" in page.text
    assert "the validation loss of the EMA" in page.text
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    manifest = read_json(run / "manifest.json")
    manifest["recipe"]["conditioning"]["probability"] = "none"
    write_json(run / "manifest.json", manifest)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k != "validation"} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    write_report(run, tmp_path / "page.html", draw=False)
    plain = Page(tmp_path / "page.html")
    assert "without random conditioning" in plain.text
    assert "No random conditioning: each latent keeps its own text; 10 % become the null condition." in plain.text
    assert "validation loss of" not in plain.text
    assert plain.source.count("<svg") == 2, "losses, and the UNet"


def test_a_run_without_its_teacher_or_with_another(made: Path, tmp_path: Path, other_teacher: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    manifest = read_json(run / "manifest.json")
    for path, note in ((str(tmp_path / "nowhere"), "not on this machine"), (str(other_teacher), "has changed")):
        manifest["recipe"]["teacher"]["path"] = path
        write_json(run / "manifest.json", manifest)
        said = write_report(run, tmp_path / "page.html", package=made / "package")
        assert note in said["notes"][0]
        assert said["notes"][1] == NOT_OURS
        page = Page(tmp_path / "page.html")
        assert str(tmp_path) not in page.source
        assert len(page.pictures("student: ")) == len(page.pictures("package: ")) == len(PROMPTS)
        assert "100.0 %" not in page.text, "there is nothing to be a share of"


def test_prompts_of_a_run_are_found_by_the_digest_of_its_pool(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    manifest = read_json(run / "manifest.json")
    manifest["recipe"]["evaluate"]["prompts"] = []
    write_json(run / "manifest.json", manifest)
    said = write_report(run, tmp_path / "page.html")
    assert "--prompt" in said["notes"][0]
    shutil.copytree(made / "pools", tmp_path / "pools")
    write_report(run, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.pictures("student: ")) == 8
    assert any(prompt in page.text for prompt in FURTHER)


def test_bench_results_stand_beside_the_teachers(made: Path, tmp_path: Path) -> None:
    def subject(name: str, kind: str, median: float) -> dict[str, Any]:
        timing = {"median": median, "p10": median * 0.95, "p90": median * 1.1, "runs": 5}
        found = {"load_seconds": 1.0, "first_image_seconds": 2.0, "peak_memory_bytes": 123_000_000}
        return {"name": name, "kind": kind, "backends": {"torch": {**found, "timings": {"image": timing}}}}

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
    write_json(tmp_path / "bench.json", {"machine": machine, "settings": settings, "subjects": subjects})
    write_report(made / "run", tmp_path / "page.html", bench=tmp_path / "bench.json", draw=False)
    page = Page(tmp_path / "page.html")
    assert "An <old> processor, 3 cores" in page.text
    assert "small, torch 200 ms 25.0 % 190 ms to 220 ms" in page.text
    assert "twin, torch 780 ms 741 ms to 858 ms, the same within the spread" in page.text
    assert "big, torch 123.0 MB 100.0 %" in page.text
    assert "3 cores, 2 in use, cpu; 16 × 16 pixels" in page.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no run nowhere"),
        (["package"], "is a package, not a run"),
        (["cache"], "is a latent_cache, not a run"),
        (["run", "run"], "is a run, not a package"),
        (["run", "nowhere"], "is no package"),
        (["run", "--bench", "run/manifest.json"], "is no result of rcdeploy bench"),
        (["run", "--bench", "nowhere.json"], "nowhere.json is missing"),
        (["run", "--out", "package"], "package is a folder"),
    ],
)
def test_bad_input(made: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["report", *arguments, "--no-pictures"])
    assert isinstance(result.exception, RcdeployError)
    assert said in result.exception.message


# --- the diagram ------------------------------------------------------------------------------------------------------


def modules(config: dict[str, Any]) -> list[tuple[str, str, int, int]]:
    """(side, kind, channels, depth) of every layer of a UNet, in the order of its modules, as diffusers builds it."""
    found = []
    for name, module in build_on_meta(config).named_modules():
        side = name.split("_")[0]
        kind = {"ResnetBlock2D": "resnet", "Transformer2DModel": "attention"}.get(type(module).__name__)
        if kind:
            depth = len(module.transformer_blocks) if kind == "attention" else 1
            width = module.out_channels if kind == "resnet" else module.norm.num_channels
            found.append((side, kind, width, depth))
        elif type(module).__name__ in ("Downsample2D", "Upsample2D"):
            found.append((side, "sampler", module.out_channels, 1))
    return sorted(found)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        *((config, name) for config in (SD14_UNET_CONFIG, TOY) for name in ("b-base", "b-small", "b-tiny", "c-micro")),
        (TOY_XL, "koala-700m"),
        (TOY_XL, "koala-1b"),
    ],
)
def test_boxes_are_the_layers_that_diffusers_builds(teacher: dict[str, Any], student: str) -> None:
    config, _ = student_config(student, teacher)
    every = layers(teacher, config)
    assert sorted((x.side, x.kind, x.channels, x.depth) for x in every) == modules(teacher)
    kept = [x for x in every if x.kept is not None]
    assert sorted((x.side, x.kind, x.kept, x.kept_depth) for x in kept) == modules(config)


def test_layers_that_stay_are_those_whose_weights_are_taken() -> None:
    """Of a down block the first, of an up block the first and the last; the innermost stage goes as a whole."""
    config, _ = student_config("b-tiny", SD14_UNET_CONFIG)
    every = layers(SD14_UNET_CONFIG, config)

    def staying(side: str, stage: int, kind: str = "resnet") -> list[int]:
        return [x.index for x in every if (x.side, x.stage, x.kind) == (side, stage, kind) and x.kept is not None]

    assert [staying("down", s) for s in range(4)] == [[0], [0], [0], []]
    assert [staying("up", s) for s in range(4)] == [[0, 2], [0, 2], [0, 2], []]
    assert [staying("down", s, "sampler") for s in range(3)] == [[0], [0], []]
    assert [staying("up", s, "sampler") for s in range(1, 4)] == [[0], [0], []]
    assert Layer("mid", 3, "attention", 0, 1280, None) in every


def test_boxes_are_as_high_as_their_channels() -> None:
    config, _ = student_config("c-micro", TOY)
    svg = diagram(TOY, config)
    heights = {kind: re.findall(rf'class="{kind}"[^>]* height="([0-9.]+)"', svg) for kind in ("resnet", "was")}
    assert set(heights["resnet"]) == {"10.5", "21.0"}, "half of 21 and of 42"
    assert set(heights["was"]) == {"20.0", "41.0"}, "the teacher's, less the width of the dashed line"
    assert "40 → 20" in svg
    assert 'class="was"' not in diagram(TOY, TOY)


@pytest.mark.parametrize(
    ("number", "words"),
    [(859_520_964, "859.5 M"), (401.64e9, "401.6 G"), (12_961, "13.0 k"), (999, "999"), (1.234e15, "1.23 P")],
)
def test_counts_in_words(number: float, words: str) -> None:
    assert count_text(number) == words


def test_bytes_and_seconds_in_words() -> None:
    assert (bytes_text(2_082_536), bytes_text(812), bytes_text(3.44e9)) == ("2.08 MB", "812 bytes", "3.44 GB")
    assert (seconds_text(0.0421), seconds_text(9.4), seconds_text(159.04)) == ("42.1 ms", "9.40 s", "159.0 s")


# --- looked at --------------------------------------------------------------------------------------------------------

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
def test_screenshots(page: Page, made: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """With RCDEPLOY_SCREENSHOTS set they are kept in build/screenshots."""
    kept = Path(__file__).parent.parent / "build" / "screenshots"
    folder = kept if os.environ.get("RCDEPLOY_SCREENSHOTS") else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"report-{width}-{scheme}.png"
    colours = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    size = f"--window-size={width},4000"
    browse(tmp_path / "profile", colours, size, f"--screenshot={picture}", (made / "run" / "report.html").as_uri())
    pixels = np.asarray(Image.open(picture).convert("RGB"), int)
    assert pixels.shape[:2] == (4000, width)
    paper = pixels[2, 2].mean()
    assert paper > 250 if scheme == "light" else paper < 40
    for band in np.split(pixels[:2000], 8):  # nothing but paper anywhere would be a page that did not open
        assert abs(band - pixels[2, 2]).max() > 100
    assert (pixels[:, -8:] == pixels[2, 2]).all(), "something touches the right edge"


@needs_chromium
@pytest.mark.parametrize("width", [360, 768])
def test_no_sideways_scrolling(page: Page, tmp_path: Path, width: int) -> None:
    """Headless Chromium's windows are 500 pixels wide at least: the page is asked inside a frame."""
    asks = "<script>parent.document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    opened = page.source.replace("<details>", "<details open>").replace("</body>", f"{asks}</body>")
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{html.escape(opened)}"></iframe>')
    dom = browse(tmp_path / "profile", "--dump-dom", frame.as_uri())
    assert f"<title>{width} of {width}</title>" in dom


def test_a_subject_is_what_is_there(made: Path) -> None:
    opened = open_run(made / "run", made / "package")
    assert list(opened.costed()) == ["teacher", "student", "package"]
    assert opened.size == (64, 64)
    assert opened.notes == [NOT_OURS]


@pytest.mark.parametrize(("score", "step"), [("validation", 2), ("fid", 4), ("judge", 6)])
def test_the_best_step_is_the_one_that_the_recipe_scores_best(score: str, step: int, tmp_path: Path) -> None:
    rows = [(2, 0.1, 30.0, 0.2), (4, 0.2, 20.0, 0.3), (6, 0.3, 40.0, 0.4)]
    metrics = [{"step": s, "validation": v, "fid": f, "judge.all": j} for s, v, f, j in rows]
    opened = Opened(tmp_path, Manifest(kind="run", recipe={"evaluate": {"score": score}}), metrics)
    assert opened.best and opened.best["step"] == step
