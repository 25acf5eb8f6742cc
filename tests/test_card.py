"""The model card: the hub can read it, its example runs, what it says is so, and a package stays sealed."""

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
from rcdeploy.distill.loop import distill
from rcdeploy.recipe import Recipe
from rcdeploy.report import card as card_module
from rcdeploy.report.card import write_card
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.package import Package


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
    """What the card tells a user to type, typed in the folder of the card."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    monkeypatch.chdir(card.parent)
    exec(code.replace("seed=7", "seed=7, num_inference_steps=2") if "num_inference_steps" not in code else code, {})
    assert Path("picture.png").is_file()


def test_a_packages_card_parses_lists_itself_and_its_example_draws(
    copy: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = with_readme(small_model, "license: mit", tmp_path / "teacher")
    path = write_card(copy, teacher=teacher)
    data = ModelCard.load(path).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "rcdeploy", "text-to-image")
    assert {"text-to-image", "onnx"} <= set(data.tags) and "distillation" not in data.tags
    assert data.base_model is None
    manifest = Package(copy).manifest  # compares every digest
    assert manifest.files["README.md"] == {"sha256": sha256(path), "size": path.stat().st_size}
    parity = {p["component"]: p for p in manifest.facts["parity"]}
    assert f"| unet | fp32 | {(copy / 'unet/model.onnx').stat().st_size / 1e6:,.1f} | " in path.read_text()
    assert f"{parity['unet']['max_abs_error']:.1e}" in path.read_text()
    run_example(path, monkeypatch)


def test_a_runs_card_says_what_its_recipe_did_and_its_example_draws(
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
    for said in (
        "c-micro",
        "taught-by",
        "sigmoid of steepness 12",
        "12 of `paired.txt`",
        "pool of 40 texts",
        "1 steps",
    ):
        assert said in text, said
    assert str(tmp_path) not in text  # folders of the machine are nobody's business
    assert "no real picture" in text
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
def test_a_licence_that_is_not_found_is_unknown(
    copy: Path, small_model: Path, tmp_path: Path, front_matter: str | None, reason: str
) -> None:
    teacher = with_readme(small_model, front_matter, tmp_path / "teacher") if front_matter else small_model
    path = write_card(copy, teacher=teacher)
    assert ModelCard.load(path).data.license is None
    licence = path.read_text().split("## Licence")[1].split("##")[0]
    assert "Unknown" in licence and reason in licence and "read the teacher's licence" in licence


def test_a_licence_with_a_name_and_a_link_keeps_them(copy: Path, small_model: Path, tmp_path: Path) -> None:
    stated = "license: other\nlicense_name: house-rules\nlicense_link: https://example.org/rules"
    data = ModelCard.load(write_card(copy, teacher=with_readme(small_model, stated, tmp_path / "teacher"))).data
    assert (data.license, data.license_name, data.license_link) == (
        "other",
        "house-rules",
        "https://example.org/rules",
    )


def test_the_users_word_for_the_licence_is_called_that(copy: Path) -> None:
    path = write_card(copy, licence="apache-2.0")
    assert ModelCard.load(path).data.license == "apache-2.0"
    assert "as given by whoever wrote this card" in path.read_text()


def test_another_model_is_no_teacher(copy: Path, other_teacher: Path) -> None:
    with pytest.raises(RcdeployError, match="is not the teacher"):
        write_card(copy, teacher=other_teacher)
    assert not (copy / "README.md").exists()


def test_a_teacher_that_was_changed_since_lends_no_licence(
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
    def full(_path: Path) -> None:
        raise RcdeployError("the disk is full")

    first = write_card(copy).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(card_module, "replacing", full)
        with pytest.raises(RcdeployError, match="full"):
            write_card(copy, licence="mit")
    assert (copy / "README.md").read_text() == first
    Package(copy)
    write_card(copy, licence="mit")
    assert "README.md" in Package(copy).manifest.files


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
        "subjects": [{"name": "x", "kind": "package", "source": str(source), "backends": {"onnxruntime": backend}}],
    }


def test_figures_of_the_bench_stand_in_the_card(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(bench_result(copy)))
    result = CliRunner().invoke(app, ["card", str(copy), "--bench", str(file), "--repo-id", "me/toy", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == {"card": str(copy / "README.md"), "license": None}
    text = (copy / "README.md").read_text()
    assert "| onnxruntime | 1.234 | 1.111 to 1.456 | 0.50 | 2.50 | 321 |" in text
    assert "A Processor" in text and "onnxruntime 1.2.3" in text and "64 x 64 pixels, 25 steps" in text
    assert 'snapshot_download("me/toy"' in text and "# toy" in text
    with pytest.raises(RcdeployError, match="has no figures of"):
        write_card(copy, bench=bench_result(tmp_path / "another"))


def test_a_folder_that_is_neither_run_nor_package_is_refused(tmp_path: Path, tiny_teacher: Path) -> None:
    for folder in (tmp_path, tiny_teacher, tmp_path / "nowhere"):
        with pytest.raises(RcdeployError, match="neither a run nor a package"):
            write_card(folder)
    Manifest(kind="latent_cache").write(tmp_path)
    with pytest.raises(RcdeployError, match="but a latent_cache"):
        write_card(tmp_path)
    Manifest(kind="run").write(tmp_path)
    with pytest.raises(RcdeployError, match="has not ended"):
        write_card(tmp_path)
    assert read_json(tmp_path / "manifest.json")["files"] == {}
