"""Export: the contents of a package, its parity with torch, and what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import listing, save_teacher, unet_config
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.judge import Judge
from rcdeploy.judge_files import judge_digest
from rcdeploy.progress import no_progress
from rcdeploy.student.build import build_student
from rcdeploy.student.spec import StudentSpec, student_config
from rcdeploy_export import package as package_module
from rcdeploy_export.calibration import packaged_captions
from rcdeploy_export.components import components
from rcdeploy_export.export_options import ExportOptions, current_precision
from rcdeploy_export.onnx_graph import export_onnx
from rcdeploy_export.package import export_package, zip_package
from rcdeploy_export.parity import compare
from rcdeploy_export.quality import compare_images
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.onnx_session import OnnxSession
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

run = CliRunner().invoke


def test_the_manifest_describes_the_package(package: Path) -> None:
    manifest = Manifest.read(package, "package")
    assert manifest.wrong_files(package) == []
    assert {"model_index.json", "unet/model.onnx", "tokenizer/tokenizer.json", "vae_encoder/model.onnx"} <= set(
        manifest.files
    )
    assert set(manifest.files) == {
        f.relative_to(package).as_posix() for f in package.rglob("*") if f.is_file() and f.name != "manifest.json"
    }
    assert manifest.facts["format"] == "onnx" and manifest.facts["opset"] == 23
    assert {p["component"] for p in manifest.facts["parity"]} == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert all(0 < p["relative_error"] < 1e-5 for p in manifest.facts["parity"])
    inputs = manifest.onnx["unet"]["inputs"]
    assert inputs["timestep"]["shape"] == [] and inputs["sample"]["shape"][1] == 4
    assert isinstance(inputs["sample"]["shape"][0], str) and isinstance(inputs["sample"]["shape"][2], str)


def test_the_graphs_are_clean(package: Path) -> None:
    for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        model = onnx.load(package / name / "model.onnx")
        assert [o.version for o in model.opset_import if o.domain == ""] == [23]
        assert not any("Random" in n.op_type for n in model.graph.node)
        text = model.SerializeToString()
        assert b"site-packages" not in text and b".py" not in text  # no traces of where it was made


def test_the_package_generates_what_diffusers_generates(package: Path, small_model: Path) -> None:
    """25 guided steps from the same noise: the images agree to one grey level."""
    prompt = "a red shirt"
    seed = 5
    images, record = TextToImage.load(package).generate(prompt, seed=seed, guidance_scale=4.0)
    assert record["seeds"] == [seed]
    noise = np.random.Generator(np.random.Philox(key=seed)).standard_normal((1, 4, 8, 8), np.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(small_model)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise)
    expected = pipeline(prompt, latents=latents, guidance_scale=4.0, num_inference_steps=25).images[0]
    difference = np.abs(np.asarray(images[0], int) - np.asarray(expected, int))
    assert difference.max() <= 1


@pytest.mark.parametrize(
    "name",
    [
        "b-tiny",
        pytest.param("c-tiny", marks=pytest.mark.slow),
        pytest.param(StudentSpec(layers=(2, 1, 1, 2)), marks=pytest.mark.slow, id="layers"),
    ],
)
def test_every_student_shape_exports(name: str | StudentSpec, small_model: Path, tmp_path: Path) -> None:
    """No mid block and one layer; narrow widths that are no integer ratio; stages of different layers."""
    config, _ = student_config(name, unet_config())
    save_teacher(tmp_path / "student")
    build_student(config, 0).save_pretrained(tmp_path / "student" / "unet")
    unet = components(LatentDiffusionModel(str(tmp_path / "student")))[1]
    export_onnx(unet, tmp_path / "unet.onnx", opset=20)
    parity = compare(unet, OnnxSession(tmp_path / "unet.onnx", "cpu"), [(1, 8, 8), (2, 8, 16), (3, 16, 16)], "fp32")
    assert parity.relative_error < 1e-5


def test_static_external_and_fp16(small_model: Path, tmp_path: Path) -> None:
    """The variants in one export: fixed shapes of another size, weights beside the graph, half precision."""
    options = ExportOptions(
        precision="fp16", vae_precision="fp16", static=True, image_size=(64, 96), external_data=True, image_count=1
    )
    export_package(ExportSource.open(small_model), tmp_path / "p", options, no_progress)
    manifest = Manifest.read(tmp_path / "p", "package")
    assert (tmp_path / "p/unet/model.onnx.data").is_file()
    assert manifest.facts["static_size"] == [64, 96]
    assert manifest.onnx["unet"]["inputs"]["sample"] == {"type": "float16", "shape": [2, 4, 8, 12]}
    assert manifest.onnx["vae_decoder"]["inputs"]["latent_sample"]["type"] == "float16"
    assert "fp32 on this machine" in manifest.facts["verdict"]
    model = TextToImage.load(tmp_path / "p")
    three, _ = model.generate("a red shirt", seed=1, batch=3, num_inference_steps=2)
    third, _ = model.generate("a red shirt", seed=3, num_inference_steps=2)
    assert np.array_equal(np.asarray(three[2]), np.asarray(third[0]))
    assert len(model.generate("a bag", seed=1, batch=3, num_inference_steps=2, guidance_scale=1.0)[0]) == 3
    with pytest.raises(RcdeployError, match="96 x 64 pixels only"):
        model.generate("a red shirt", width=128)


def test_int8_is_measured(small_model: Path, tmp_path: Path) -> None:
    """Errors, seconds, and images of the captions that the user gives."""
    (tmp_path / "captions.txt").write_text("a red bag\na blue coat\na shoe\n")
    result = run(
        app,
        ["export", str(small_model), "-o", "p", "--precision", "int8", "--json"]
        + ["--prompts", "captions.txt", "--pictures", "3"],
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)["facts"]
    assert facts["precision"] == {"text_encoder": "int8", "unet": "int8", "vae_decoder": "fp32", "vae_encoder": "fp32"}
    errors = facts["unet_error_by_timestep"]
    assert len(errors) == 8 and all(0 < e["relative_error"] < 0.3 for e in errors)
    assert [e["timestep"] for e in errors] == sorted(e["timestep"] for e in errors)
    assert facts["seconds_per_step"].keys() == {"fp32", "int8"}
    assert facts["pictures"]["count"] == 3 and 0 < facts["pictures"]["grey_levels"] < 30
    assert Manifest.read(tmp_path / "p", "package").facts == facts


def test_images_are_compared_with_torchs_and_judged(package: Path, small_model: Path, tmp_path: Path) -> None:
    """An fp32 package generates what torch generates, so a judge rates both alike."""
    attributes = {"item": {"labels": ["bag", "coat"], "pattern": r"a \w+ (bag|coat)"}}
    torch.manual_seed(0)
    Judge(attributes, width=4).save(tmp_path / "judge")
    prompts = ["a red bag", "a blue coat", "a red coat"]
    result = compare_images(
        package,
        LatentDiffusionModel(str(small_model)),
        prompts,
        "fp16",
        judge=tmp_path / "judge",
        clip=None,
        sampling=SamplingDefaults("tcd", 2, 1.0),
        progress=lambda *_: None,
    )
    assert result["count"] == 3 and result["grey_levels"] < 0.5
    assert result["judge"]["fp32"] == result["judge"]["fp16"]
    assert set(result["judge"]["fp32"]) == {"item"}


def test_a_network_that_disagrees_leaves_no_package(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported text encoder is not the one it is compared with: nothing is written, what was there stays."""
    honest = package_module.export_onnx

    def wrong(part, file, **settings):
        with torch.no_grad():
            for p in part.module.parameters():
                p.mul_(1.5)
        honest(part, file, **settings)
        with torch.no_grad():
            for p in part.module.parameters():
                p.div_(1.5)

    monkeypatch.setattr(package_module, "export_onnx", wrong)
    before = listing(tmp_path)
    with pytest.raises(RcdeployError, match="text_encoder: the exported network differs from torch"):
        export_package(ExportSource.open(small_model), tmp_path / "p", ExportOptions(), no_progress)
    assert listing(tmp_path) == before


def test_the_vae_is_in_bf16_beside_a_unet_in_bf16() -> None:
    def of_vae(format: str, precision: str, vae: str | None = None) -> str:
        return ExportOptions(format, precision, vae).precision_of("vae_decoder")

    assert of_vae("openvino", "bf16") == of_vae("openvino", "fp32", "bf16") == "bf16"
    assert of_vae("openvino", "fp16") == of_vae("onnx", "fp16") == of_vae("openvino", "bf16", "fp32") == "fp32"
    assert ExportOptions("openvino", "bf16").as_facts()["vae_precision"] == "bf16"


def test_bad_input_is_refused(tmp_path: Path, package: Path) -> None:
    for arguments, message in (
        (["export"], "there is no finished run"),
        (["export", "nowhere"], "no file or folder here"),
        (["export", str(package)], "is already a package"),
        (["export", str(package), "--format", "tflite"], "none of onnx, openvino, trt"),
        (["export", str(package), "--precision", "int4"], "none of fp32"),
        (["export", str(package), "--precision", "bf16"], "no bf16 convolutions"),
        (["export", str(package), "--vae-precision", "bf16"], "no bf16 convolutions"),
        (["export", str(package), "--format", "openvino", "--vae-precision", "int8"], "none of fp32, fp16, bf16"),
        (["export", str(package), "--format", "trt", "--precision", "mixed"], "take int8"),
        (["export", str(package), "--precision", "int8-weights"], "for ONNX take int8-matmul"),
        (["export", str(package), "--opset", "99"], "allowed for --format onnx --precision fp32 are 18 to 23"),
        (["export", str(package), "--precision", "int8", "--opset", "23"], "are 18 to 20"),
        (["export", str(package), "--prompts", "gone.txt"], "no such file"),
        (["export", str(package), "--clip", "gone"], "no such file"),
        (["export", str(package), "--format", "trt", "--compute-capability", "new"], "must look like 8.6"),
        (["export", "c-micro"], "name of a student"),
        (["export", str(package), "--format", "openvino", "--check", "trt"], "has none"),
        (["export", str(package), "--compute-capability", "8.6"], "--format trt"),
        (["export", str(package), "--max-batch", "2"], "for --format trt"),
        (["export", str(package), "--format", "trt", "--static", "--profile", "8x8,8x8,8x8"], "contradict"),
        (["export", str(package), "--format", "trt", "--profile", "64x64"], "three sizes"),
        (["export", str(package), "--pictures", "-1"], "must be 0 or more"),
        (["export", str(package), "--size", "64x64"], "is for --static only"),
        (["export", str(package), "--static", "--size", "big"], "HxW"),
        (["generate", "nowhere", "a bag"], "package"),
    ):
        result = run(app, arguments)
        error = result.exception
        assert isinstance(error, RcdeployError) and message in f"{error}", (arguments, result.output, error)
    assert listing(tmp_path) == {}


def test_export_replaces_packages_only(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("dear diary")
    with pytest.raises(RcdeployError, match="exists and is not a package"):
        export_package(ExportSource.open(small_model), tmp_path / "mine", ExportOptions(), no_progress)
    assert (tmp_path / "mine/diary.txt").read_text() == "dear diary"


def test_zip_is_read_as_it_is(package: Path, tmp_path: Path) -> None:
    zip_package(package, tmp_path / "p.zip")
    prompt = {"prompt": "a bag", "seed": 1, "num_inference_steps": 2}
    images, _ = TextToImage.load(tmp_path / "p.zip").generate(**prompt)
    expected, _ = TextToImage.load(package).generate(**prompt)
    assert np.array_equal(np.asarray(images[0]), np.asarray(expected[0]))


def test_a_package_carries_captions_and_the_name_of_its_judge(
    copied_graphs: None, small_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_model, tmp_path / "model")
    captions = [f"a red bag, number {i}" for i in range(3000)]
    (tmp_path / "model/captions.txt").write_text("\n".join(captions) + "\n\n")
    attributes = {"item": {"labels": ["bag", "coat"], "pattern": r"a \w+ (bag|coat)"}}
    Judge(attributes, width=4).save(tmp_path / "model/judge")
    result = run(app, ["export", "model", "-o", "p", "--zip", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["zip"] == "p.zip" and (tmp_path / "p.zip").is_file() and printed["engines"] is None
    manifest = Manifest.read(tmp_path / "p", "package")
    assert manifest.facts["captions"] == "captions.txt" and "captions.txt" in manifest.files
    packaged = (tmp_path / "p/captions.txt").read_text().splitlines()
    assert len(packaged) == 1000 and set(packaged) <= set(captions) and packaged[0] == captions[0]
    judge = manifest.facts["judge"]
    assert judge == {"teacher": "model", "folder": "judge", "digest": judge_digest(tmp_path / "model/judge")}
    TextToImage.load(tmp_path / "p.zip")


def test_a_package_of_a_run_carries_its_recipes_captions(tmp_path: Path) -> None:
    """Those of its latent cache, or of its recipe's files where the cache is gone; at most 64 kB."""
    (tmp_path / "captions.csv").write_text(
        "id,words\n" + "".join(f"{i},caption {i} {'long ' * 50}\n" for i in range(900))
    )
    recipe = {"prompts": {"paired": ["captions.csv"], "column": "words"}, "teacher": {"path": "teacher"}}
    source = ExportSource("r", tmp_path, tmp_path, Manifest(kind="run", recipe=recipe, facts={"cache_folder": "gone"}))
    captions = packaged_captions(source)
    assert captions[0].startswith("caption 0 long") and captions[-1].startswith("caption 89")
    assert 55_000 < len("\n".join(captions)) <= 64_000


def test_a_package_carries_the_captions_that_its_recipe_evaluates_with(tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("a red bag\na blue coat\n")
    (tmp_path / "learnt.txt").write_text("a green boot\n")
    recipe = {
        "prompts": {"paired": [str(tmp_path / "learnt.txt")]},
        "evaluate": {"prompt_files": [str(tmp_path / "held_out.txt")]},
        "teacher": {"path": "teacher"},
    }
    source = ExportSource("r", tmp_path, tmp_path, Manifest(kind="run", recipe=recipe, facts={"cache_folder": "gone"}))
    assert packaged_captions(source) == ["a red bag", "a blue coat"]
    (tmp_path / "held_out.txt").unlink()
    assert packaged_captions(source) == ["a green boot"]


def test_the_former_name_of_a_precision_still_works() -> None:
    remarks: list[str] = []
    assert current_precision("onnx", "mixed", remarks.append) == "int8-matmul"
    assert current_precision("openvino", "mixed", remarks.append) == "int8-weights"
    assert current_precision("onnx", "int8", remarks.append) == "int8"
    assert len(remarks) == 2 and "now called int8-matmul" in remarks[0]
