"""The model card: the hub can parse it, its example runs, its statements are true, and its package stays valid."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import save_teacher
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.loop import distill
from rcdeploy.recipe import Recipe
from rcdeploy.report import card as card_module
from rcdeploy.report.card import CardOptions, write_card
from rcdeploy.report.evaluations import package_digests
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.package import Package

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy"))


def finished_run(recipe: Recipe) -> Path:
    folder = Path("runs/tiny")
    distill(recipe, folder, lambda *_: None, lambda _: None)
    return folder


def with_readme(teacher: Path, front_matter: str, to: Path) -> Path:
    """A copy of the teacher: its digest does not depend on its README.md."""
    shutil.copytree(teacher, to)
    (to / "README.md").write_text(f"---\n{front_matter}\n---\n\n# A teacher\n")
    return to


def run_example(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the card's example in the folder of the card."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    monkeypatch.chdir(card.parent)
    exec(code.replace("seed=7", "seed=7, num_inference_steps=2") if "num_inference_steps" not in code else code, {})
    assert Path("image.png").is_file()


def test_a_packages_card_parses_and_its_example_runs(
    copy: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = with_readme(small_model, "license: mit", tmp_path / "teacher")
    before = (copy / "manifest.json").read_bytes()
    path = write_card(copy, CardOptions(teacher=teacher))
    assert (copy / "manifest.json").read_bytes() == before  # a pinned package stays the pinned one
    data = ModelCard.load(path).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "rcdeploy", "text-to-image")
    assert {"text-to-image", "onnx"} <= set(data.tags) and "distillation" not in data.tags
    assert data.base_model is None
    manifest = Package(copy).manifest  # compares every digest
    parity = {p["component"]: p for p in manifest.facts["parity"]}
    assert f"| unet | fp32 | {(copy / 'unet/model.onnx').stat().st_size / 1e6:,.1f} | " in path.read_text()
    assert f"{parity['unet']['max_abs_error']:.1e}" in path.read_text()
    run_example(path, monkeypatch)


def test_a_runs_card_states_its_recipe_and_its_example_runs(
    tiny_recipe: Callable[..., Recipe], tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = with_readme(tiny_teacher, "license: openrail", tmp_path / "taught-by")
    conditioning = {"probability": "sigmoid", "steepness": 12.0}
    recipe = tiny_recipe(
        teacher={"path": str(teacher)}, conditioning=conditioning, evaluate={"every": 1}, train={"max_steps": 1}
    )
    run = finished_run(recipe)
    before = (run / "manifest.json").read_bytes()
    path = write_card(run)
    assert path == run / "pipeline" / "README.md"
    assert (run / "manifest.json").read_bytes() == before  # packages name a run by its digest
    card, text = ModelCard.load(path), path.read_text()
    assert (card.data.license, card.data.library_name) == ("openrail", "diffusers")
    assert {"distillation", "random-conditioning"} <= set(card.data.tags)
    for statement in (
        "c-micro",
        "taught-by",
        "sigmoid of steepness 12",
        "12 of `paired.txt`",
        "pool of 40 prompts",
        "1 steps",
    ):
        assert statement in text, statement
    assert str(tmp_path) not in text  # folders of the machine stay private
    assert "no real image" in text
    assert (path.parent / "samples.png").read_bytes() == (run / "samples" / "latest.png").read_bytes()
    run_example(path, monkeypatch)


def test_parameters_and_macs_are_counted(copy: Path, small_model: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(small_model, subfolder="unet")
    assert f"| this one | {sum(p.numel() for p in unet.parameters()):,} |" in write_card(copy).read_text()


@pytest.mark.parametrize(
    ("front_matter", "reason"),
    [(None, "no README.md"), ("tags: [toy]", "states none"), ("license: [", "cannot be read")],
)
def test_a_missing_licence_is_unknown(
    copy: Path, small_model: Path, tmp_path: Path, front_matter: str | None, reason: str
) -> None:
    teacher = with_readme(small_model, front_matter, tmp_path / "teacher") if front_matter else small_model
    path = write_card(copy, CardOptions(teacher=teacher))
    assert ModelCard.load(path).data.license is None
    licence = path.read_text().split("## Licence")[1].split("##")[0]
    assert "Unknown" in licence and reason in licence and "read the teacher's licence" in licence


def test_a_licence_with_a_name_and_a_link_keeps_them(copy: Path, small_model: Path, tmp_path: Path) -> None:
    stated = "license: other\nlicense_name: house-rules\nlicense_link: https://example.org/rules"
    options = CardOptions(teacher=with_readme(small_model, stated, tmp_path / "teacher"))
    data = ModelCard.load(write_card(copy, options)).data
    assert (data.license, data.license_name, data.license_link) == (
        "other",
        "house-rules",
        "https://example.org/rules",
    )


def test_a_licence_of_the_user_is_marked_as_such(copy: Path) -> None:
    path = write_card(copy, CardOptions(licence="apache-2.0"))
    assert ModelCard.load(path).data.license == "apache-2.0"
    assert "as stated by the author of this card" in path.read_text()


def test_another_model_is_not_the_teacher(copy: Path, other_teacher: Path) -> None:
    with pytest.raises(RcdeployError, match="is not the teacher"):
        write_card(copy, CardOptions(teacher=other_teacher))
    assert not (copy / "README.md").exists()


def test_a_teacher_that_has_changed_gives_no_licence(
    tiny_recipe: Callable[..., Recipe], tiny_teacher: Path, tmp_path: Path
) -> None:
    teacher = with_readme(tiny_teacher, "license: mit", tmp_path / "teacher")
    run = finished_run(tiny_recipe(teacher={"path": str(teacher)}, train={"max_steps": 1}))
    shutil.rmtree(teacher)
    assert "not on the machine" in write_card(run).read_text()
    with_readme(save_teacher(tmp_path / "new", seed=5), "license: mit", teacher)
    path = write_card(run)
    assert "now holds another model" in path.read_text() and ModelCard.load(path).data.license is None


def test_a_teacher_of_the_hub_is_the_base_model(
    copy: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--house--teacher"
    with_readme(small_model, "license: creativeml-openrail-m", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    manifest = Manifest.read(copy, "package")
    manifest.teacher["id"], manifest.recipe = "house/teacher", a_recipe("house/teacher")
    manifest.write(copy)
    data = ModelCard.load(write_card(copy)).data
    assert (data.base_model, data.license) == ("house/teacher", "creativeml-openrail-m")


def a_recipe(teacher: str) -> dict[str, Any]:
    data = {"name": "named", "teacher": {"path": teacher}, "prompts": {"paired": ["/home/user/captions.txt"]}}
    return Recipe.model_validate(data).resolved()


def test_a_package_is_whole_when_writing_its_card_fails(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose manifest lists its card, as those of rcdeploy 0.1 do."""

    def full(_path: Path) -> None:
        raise RcdeployError("the disk is full")

    first = write_card(copy).read_text()
    manifest = Manifest.read(copy, "package")
    manifest.add_file(copy, "README.md")
    manifest.write(copy)
    with monkeypatch.context() as patch:
        patch.setattr(card_module, "replacing", full)
        with pytest.raises(RcdeployError, match="full"):
            write_card(copy, CardOptions(licence="mit"))
    assert (copy / "README.md").read_text() == first
    Package(copy)
    write_card(copy, CardOptions(licence="mit"))
    assert "README.md" not in Package(copy).manifest.files


def bench_result(source: Path) -> dict[str, Any]:
    timings = {"image": {"median": 1.234, "p90": 1.3, "min": 1.111, "max": 1.456, "runs": 5}}
    backend = {"load_seconds": 0.5, "first_image_seconds": 2.5, "peak_memory_bytes": 321e6, "timings": timings}
    return {
        "machine": {"processor": "A Processor", "cores": 2, "memory_gb": 8, "versions": {"onnxruntime": "1.2.3"}},
        "settings": {
            "height": 64,
            "width": 64,
            "num_inference_steps": 25,
            "guidance_scale": 7.5,
            "threads": 2,
            "device": "cpu",
        },
        "warnings": ["This machine was busy"],
        "subjects": [{"name": "x", "kind": "package", "source": str(source), "backends": {"onnxruntime": backend}}],
    }


def test_timings_of_bench_are_in_the_card(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(bench_result(copy)))
    result = CliRunner().invoke(app, ["card", str(copy), "--bench", str(file), "--repo-id", "me/toy", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == {"card": str(copy / "README.md"), "license": None}
    text = (copy / "README.md").read_text()
    assert "| onnxruntime | 1.234 | 1.111 to 1.456 | 0.50 | 2.50 | 321 |" in text
    assert "**This machine was busy**" in text
    assert "A Processor" in text and "onnxruntime 1.2.3" in text and "64 x 64 pixels, 25 steps" in text
    assert 'snapshot_download("me/toy"' in text and "# toy" in text
    with pytest.raises(RcdeployError, match="does not measure"):
        write_card(copy, CardOptions(bench=bench_result(tmp_path / "another")))


def test_other_folders_have_no_card(tmp_path: Path, tiny_teacher: Path) -> None:
    for folder, message in (
        (tmp_path, "neither a run, nor a package"),
        (tiny_teacher, "is a diffusers folder"),
        (tmp_path / "nowhere", "no file or folder"),
    ):
        with pytest.raises(RcdeployError, match=message):
            write_card(folder)
    Manifest(kind="latent_cache").write(tmp_path)
    with pytest.raises(RcdeployError, match="is a latent_cache"):
        write_card(tmp_path)
    Manifest(kind="run").write(tmp_path)
    with pytest.raises(RcdeployError, match="has not ended"):
        write_card(tmp_path)
    assert read_json(tmp_path / "manifest.json")["files"] == {}


def write_scores(folder: Path, model: str, **scores: float) -> None:
    """scores.json as `rcdeploy evaluate` writes it."""
    identity = {"model": model, "count": 96, "seed": 3, "num_inference_steps": 25, "guidance_scale": 7.5}
    record = {
        "identity": identity,
        "prompts": {"files": ["/home/user/captions.txt"], "include": [], "exclude": ["dog"], "repeat": 1},
        "weights": {"judge": {"path": "/home/user/judge", "sha256": "0"}},
        "scores": {"all": scores},
        "counts": {"all": 96},
    }
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(record))


def test_scores_of_evaluate_are_in_the_card(
    tiny_recipe: Callable[..., Recipe], copy: Path, tmp_path: Path, tiny_teacher: Path
) -> None:
    (digest,) = package_digests(Manifest.read(copy, "package"))
    write_scores(tmp_path / "evaluations" / "another", "0" * 16, fid=1.0)
    assert "no measure of image quality" in write_card(copy).read_text()  # that is another model's
    write_scores(tmp_path / "evaluations" / "copy-1", digest, **{"judge.all": 0.451, "fid": 12.345})
    run = finished_run(tiny_recipe(train={"max_steps": 1}))
    write_scores(tmp_path / "evaluations" / "run", LatentDiffusionModel(str(run / "pipeline")).revision, clip=0.3)
    text = write_card(copy).read_text()
    assert "| metric | 96 images |" in text and "| judge: all | 0.4510 |" in text and "| FID | 12.35 |" in text
    assert "CLIP" not in text.replace("CLIP score)", "")
    command = "rcdeploy evaluate copy --prompts captions.txt --exclude dog --count 96 --seed 3 --steps 25"
    assert command in text and "/home/user" not in text and "Computed with judge: judge." in text
    assert "no measure of image quality" not in text
    assert write_card(copy).read_text() == text  # and the scores are still found
    assert "| CLIP score | 0.3000 |" in write_card(run).read_text()


def test_evaluate_identifies_a_package_as_the_card_does(copy: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a red boot\na blue bag\n")
    judge = ROOT / "examples/teachers/fashion/judge"
    arguments = ["evaluate", str(copy), "--prompts", str(captions), "--judge", str(judge), "--steps", "1", "--quiet"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "| metric | 2 images |" in write_card(copy).read_text()
