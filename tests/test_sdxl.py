"""SDXL teachers: their condition is that of diffusers' pipeline; cache, distillation of KOALA students, images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
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
from rcdeploy_runtime.errors import RcdeployError

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


@pytest.mark.parametrize("student", ["koala-700m", "koala-1b"])
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
    """/reference.md's list for KOALA-700M; every tap exists in teacher and student, with equal channels."""
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
