"""SDXL teachers: their condition is that of diffusers' pipeline; cache, distillation of KOALA students, images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import copy_graphs
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from genai import genai_image
from sdxl_models import WIDTHS, save_sdxl, sdxl_unet_config
from training_runs import RecipeOf, metrics

from rcdeploy.bench.costs import component_costs
from rcdeploy.condition import added_shapes
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.features import feature_taps
from rcdeploy.distill.loop import distill
from rcdeploy.estimate.estimate import estimate
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from rcdeploy.progress import no_log, no_progress
from rcdeploy.sampling import sample_images
from rcdeploy.student.build import build_on_meta
from rcdeploy.student.spec import student_config
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.single_file import write_single_file
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

PROMPT = "a red bag"


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("sdxl") / "sdxl")


@pytest.fixture
def pipeline(sdxl: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_condition_is_that_of_diffusers(sdxl: Path, pipeline: StableDiffusionXLPipeline) -> None:
    condition = LatentDiffusionModel(str(sdxl)).encode_prompts([PROMPT, "a blue coat, and so on and so on"], (6, 10))
    embeds, null_embeds, pooled, null_pooled = pipeline.encode_prompt([PROMPT, "a blue coat, and so on and so on"])
    assert condition.prompt_embeds.shape[-1] == sum(WIDTHS)
    torch.testing.assert_close(condition.prompt_embeds, embeds)
    torch.testing.assert_close(condition.added["text_embeds"], pooled)
    assert condition.added["time_ids"].tolist() == [[48, 80, 0, 0, 48, 80]] * 2
    null = LatentDiffusionModel(str(sdxl)).null_condition()
    assert null.added["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]]
    torch.testing.assert_close(null.prompt_embeds, null_embeds[:1])
    torch.testing.assert_close(null.added["text_embeds"], null_pooled[:1])


def test_the_null_condition_is_the_empty_prompts_where_the_model_says_so(sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(sdxl, tmp_path / "model")
    change(tmp_path / "model/model_index.json", force_zeros_for_empty_prompt=False)
    null = LatentDiffusionModel(str(tmp_path / "model")).null_condition()
    assert null.prompt_embeds.abs().max() > 0
    torch.testing.assert_close(null.prompt_embeds, LatentDiffusionModel(str(sdxl)).encode_prompts([""]).prompt_embeds)


def test_images_are_those_of_diffusers(sdxl: Path, pipeline: StableDiffusionXLPipeline) -> None:
    model = LatentDiffusionModel(str(sdxl))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = sample_images(model, [PROMPT], noise, num_inference_steps=3, guidance_scale=4.0)
    pipeline.scheduler = DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False})
    expected = pipeline(
        PROMPT, latents=noise, num_inference_steps=3, guidance_scale=4.0, height=64, width=64, output_type="pt"
    ).images
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("student", ["koala-700m", pytest.param("koala-1b", marks=pytest.mark.slow)])
def test_koala_students_learn_by_their_taps(student: str, sdxl: Path, tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(
        teacher={"path": str(sdxl)}, student={"name": student, "init": "teacher"}, loss={"feature": 1.0}
    )
    distill(recipe, Path("run"), no_progress, no_log)
    lines = [line for line in metrics(Path("run")) if "feature" in line]
    assert lines and all(0 < line["feature"] < 1e6 for line in lines)
    folder = Path("run/pipeline")
    assert json.loads((folder / "model_index.json").read_text())["force_zeros_for_empty_prompt"] is True
    assert StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)(
        PROMPT, num_inference_steps=1, height=64, width=64, output_type="np"
    ).images.shape == (1, 64, 64, 3)


def test_the_taps_are_those_of_the_authors() -> None:
    """The list for KOALA-700M; every tap exists in teacher and student, with equal channels."""
    teacher = sdxl_unet_config()
    config, _ = student_config("koala-700m", teacher)
    taps = [(tap.student, tap.teacher) for tap in feature_taps(teacher, config)]
    attn = "transformer_blocks.{}.attn1".format
    assert taps == [
        ("down_blocks.0.downsamplers.0.conv",) * 2,
        *((f"down_blocks.1.attentions.0.{attn(i)}",) * 2 for i in range(2)),
        *((f"down_blocks.2.attentions.0.{attn(i)}",) * 2 for i in range(5)),
        *((f"up_blocks.0.attentions.0.{attn(i)}",) * 2 for i in range(5)),
        *((f"up_blocks.0.attentions.1.{attn(i)}", f"up_blocks.0.attentions.2.{attn(i)}") for i in range(5)),
        *((f"up_blocks.1.attentions.0.{attn(i)}",) * 2 for i in range(2)),
        *((f"up_blocks.1.attentions.1.{attn(i)}", f"up_blocks.1.attentions.2.{attn(i)}") for i in range(2)),
        ("up_blocks.2.resnets.1.conv2", "up_blocks.2.resnets.2.conv2"),
    ]
    networks = build_on_meta(config), build_on_meta(teacher)
    for pair in taps:
        for network, name in zip(networks, pair, strict=True):
            network.get_submodule(name)
    shallow, _ = student_config("b-tiny", teacher)  # fewer stages, each of the teacher's depth: no KOALA student
    assert [tap.teacher for tap in feature_taps(teacher, shallow)][2:] == ["up_blocks.1", "up_blocks.2"]
    nested = teacher | {"transformer_layers_per_block": [1, [2, 1], [4, 5]]}  # as SSD-1B has them
    nested["reverse_transformer_layers_per_block"] = [[4, 4, 5], [2, 1, 1], 1]
    by_block, _ = student_config("b-base", nested)
    assert [tap.teacher for tap in feature_taps(nested, by_block)][:2] == ["down_blocks.0", "down_blocks.1"]
    with_mid, _ = student_config("koala-1b", teacher)
    assert [t.student for t in feature_taps(teacher, with_mid) if t.student.startswith("mid_block")] == [
        f"mid_block.attentions.0.{attn(i)}" for i in range(6)
    ]


def test_costs_and_estimates_count_both_text_encoders(sdxl: Path, tiny_recipe: RecipeOf) -> None:
    model = describe_model(resolve(sdxl))
    loaded = LatentDiffusionModel(str(sdxl))
    encoders = (loaded.text_encoder, loaded.text_encoder_2)
    counted = component_costs(model, (64, 64))["text_encoder"]
    assert counted["parameters"] == sum(p.numel() for encoder in encoders for p in encoder.parameters())
    recipe = tiny_recipe(teacher={"path": str(sdxl)}, student={"name": "koala-700m", "init": "teacher"})
    result = estimate(recipe, measure=False)
    assert result["parameters"]["text_encoder"] == counted["parameters"] and result["total"]["macs"] > 0


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refiner(folder: Path) -> None:
    change(folder / "model_index.json", text_encoder=[None, None], requires_aesthetics_score=True)


def turbo(folder: Path) -> None:
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    change(folder / "scheduler/scheduler_config.json", _class_name="EulerAncestralDiscreteScheduler")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (refiner, "SDXL's refiner"),
        (turbo, "SDXL Turbo"),
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "no text_encoder_2"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "no tokenizer_2"),
        (lambda folder: change(folder / "unet/config.json", addition_embed_type="image"), "of the kind image"),
        (
            lambda folder: change(folder / "unet/config.json", projection_class_embeddings_input_dim=20),
            "no room for pooled text",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(sdxl: Path, tmp_path: Path, harm: Any, message: str) -> None:
    shutil.copytree(sdxl, tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(RcdeployError, match=message):
        model = LatentDiffusionModel(str(tmp_path / "model"))
        added_shapes(model.unet_config, 1)


def test_koala_is_for_sdxl_alone(tiny_recipe: RecipeOf) -> None:
    with pytest.raises(RcdeployError) as error:
        tiny_recipe(student={"name": "koala-700m", "init": "teacher"})
    assert "KOALA is for SDXL teachers" in error.value.errors[0]


@pytest.fixture(scope="session")
def sdxl_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One transformer layer a stage: an export takes time for every node of the graph."""
    small = {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)}
    return save_sdxl(tmp_path_factory.mktemp("sdxl") / "small", **small)


@pytest.fixture(scope="session")
def sdxl_package(sdxl_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "sdxl"
    export_package(ExportSource.open(sdxl_small), folder, ExportOptions(encoder=False), no_progress)
    return folder


def expected_image(model: Path, size: tuple[int, int], guidance_scale: float) -> np.ndarray:
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False})
    height, width = size
    noise = np.random.Generator(np.random.Philox(key=5)).standard_normal((1, 4, height // 8, width // 8), np.float32)
    image = pipeline(
        PROMPT,
        latents=torch.from_numpy(noise),
        guidance_scale=guidance_scale,
        num_inference_steps=3,
        height=height,
        width=width,
    ).images[0]
    return np.asarray(image, int)


@pytest.mark.parametrize(("size", "guidance_scale"), [((64, 64), 4.0), ((64, 96), 1.0)])
def test_the_package_draws_what_diffusers_draws(
    sdxl_package: Path, sdxl_small: Path, size: tuple[int, int], guidance_scale: float
) -> None:
    model = TextToImage.load(sdxl_package)
    settings = {"num_inference_steps": 3, "guidance_scale": guidance_scale, "height": size[0], "width": size[1]}
    images, _ = model.generate(PROMPT, seed=5, **settings)
    assert np.abs(np.asarray(images[0], int) - expected_image(sdxl_small, size, guidance_scale)).max() <= 1
    together, _ = model.generate([PROMPT, "a blue coat"], seed=5, **settings)
    assert np.abs(np.asarray(together[0], int) - np.asarray(images[0], int)).max() <= 1


@pytest.fixture(scope="module")
def openvino_package(sdxl_small: Path, sdxl_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino") / "sdxl"
    with pytest.MonkeyPatch.context() as patch:
        copy_graphs(sdxl_package, patch)
        options = ExportOptions(format="openvino", encoder=False)
        export_package(ExportSource.open(sdxl_small), folder, options, no_progress)
    return folder


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_the_openvino_package_draws_the_same_and_so_does_genai(
    openvino_package: Path, sdxl_package: Path, guidance_scale: float
) -> None:
    settings = {"num_inference_steps": 4, "guidance_scale": guidance_scale}
    drawn = [
        np.asarray(TextToImage.load(package).generate(PROMPT, seed=5, **settings)[0][0], int)
        for package in (sdxl_package, openvino_package)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert np.abs(drawn[1] - genai_image(openvino_package, PROMPT, 5, **settings)).max() <= 2
    parity = Manifest.read(openvino_package, "package").facts["parity"]
    assert {entry["component"] for entry in parity} == {"text_encoder", "text_encoder_2", "unet", "vae_decoder"}
    assert max(entry["relative_error"] for entry in parity) < 1e-4


def test_the_manifest_of_an_sdxl_package(sdxl_package: Path) -> None:
    manifest = Manifest.read(sdxl_package, "package")
    assert manifest.facts["sdxl"] == {
        "hidden_states": ["hidden_states.2", "hidden_states.2"],
        "zeros_for_empty_prompt": True,
    }
    assert list(manifest.onnx["unet"]["inputs"]) == [
        *("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids")
    ]
    assert list(manifest.onnx["text_encoder_2"]["outputs"])[:2] == ["text_embeds", "last_hidden_state"]
    model = describe_model(resolve(sdxl_package))
    assert model.weight_bytes and model.weight_bytes["text_encoder"] == manifest.size_of(
        "text_encoder"
    ) + manifest.size_of("text_encoder_2")
    component_costs(model, (64, 64))


@pytest.mark.parametrize("lost", ["text_encoder_2/model.onnx", "tokenizer_2/tokenizer.json"])
def test_a_package_that_lacks_its_second_encoder(sdxl_package: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(sdxl_package, tmp_path / "p")
    (tmp_path / "p" / lost).unlink()
    manifest = Manifest.read(tmp_path / "p", "package")
    del manifest.files[lost]
    manifest.write(tmp_path / "p")
    with pytest.raises(RcdeployError, match=f"lists no {lost}"):
        TextToImage.load(tmp_path / "p")


def test_koala_students_have_no_maps_for_the_frequency_loss(sdxl: Path, tiny_recipe: RecipeOf) -> None:
    loss = {"feature": 0.0, "frequency": 0.1}
    recipe = tiny_recipe(teacher={"path": str(sdxl)}, student={"name": "koala-1b", "init": "teacher"}, loss=loss)
    with pytest.raises(RcdeployError, match="are none"):
        distill(recipe, Path("run"), no_progress, no_log)


def test_there_is_no_single_file_for_sdxl(sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="has no layout yet"):
        write_single_file(LatentDiffusionModel(str(sdxl)), tmp_path / "sdxl.safetensors")
    assert not (tmp_path / "sdxl.safetensors").exists()
