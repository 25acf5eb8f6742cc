"""A range of guidance scales folded into a student: the embedding is diffusers', and so are the pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import unet_config
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from training_runs import Killed, at_step, fail, ran, same_bytes

from rcdeploy.bench.costs import component_costs, image_macs
from rcdeploy.bench.macs import unet_macs
from rcdeploy.condition import Condition, predict
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.step import guided_prediction
from rcdeploy.estimate.estimate import estimate
from rcdeploy.few_steps.train import train_few_steps
from rcdeploy.guidance import draw_scales
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from rcdeploy.progress import no_progress
from rcdeploy.recipe import Recipe
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy.student.build import build_student
from rcdeploy.student.init import GUIDANCE_WEIGHT, initialise
from rcdeploy.student.spec import StudentSpec, student_config
from rcdeploy_export import package as package_module
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.onnx_graph import export_onnx
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.guidance import guidance_embedding
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.sampling_defaults import EMBEDDING_WIDTH

RANGE = {"guidance_scale": [1.0, 8.0]}
RecipeOf = Callable[..., Recipe]


def test_the_embedding_is_diffusers() -> None:
    scales = torch.tensor([1.0, 1.7, 4.0, 8.0])
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1, EMBEDDING_WIDTH)
    # angles are in the thousands: single precision holds them to 1e-3
    np.testing.assert_allclose(guidance_embedding(scales.numpy()), expected.numpy(), atol=2e-3)


def test_scales_are_spread_over_the_range_and_the_same_every_time() -> None:
    drawn = draw_scales((2.0, 6.0), 0, 3, range(2000))
    assert isinstance(drawn, np.ndarray)
    assert (
        drawn.min() >= 2 and drawn.max() <= 6 and abs(drawn.mean() - 4) < 0.1 and abs(drawn.std() - 4 / 12**0.5) < 0.1
    )
    assert np.array_equal(drawn[5:9], draw_scales((2.0, 6.0), 0, 3, range(5, 9)))
    assert not np.array_equal(drawn, draw_scales((2.0, 6.0), 0, 4, range(2000)))
    assert draw_scales(4.0, 0, 0, range(3)) == 4.0 and draw_scales(None, 0, 0, range(3)) is None


@pytest.mark.parametrize("scale", [[8.0, 1.0], [4.0, 4.0], [0.5, 4.0], [1.0, 1000.0], [1.0], 1.0, "4-8"])
def test_ranges_that_are_none_are_refused(scale: Any, recipe_file: Callable[..., Path]) -> None:
    from rcdeploy.recipe_file import load_recipe

    with pytest.raises(RcdeployError) as error:
        load_recipe(recipe_file(distill={"guidance_scale": scale}))
    assert any("distill" in line for line in error.value.errors or [str(error.value)])


def test_each_row_has_its_own_scale() -> None:
    class Text(torch.nn.Module):
        def forward(self, x: torch.Tensor, _t: torch.Tensor, text: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
            return (x * 0 + text.mean((1, 2)).view(-1, 1, 1, 1),)

    condition, null = Condition(torch.ones(3, 1, 1)), Condition(torch.zeros(1, 1, 1))
    rows = guided_prediction(Text(), torch.zeros(3, 1, 1, 1), torch.zeros(3), condition, null, np.float32([2, 3, 5]))
    assert rows.flatten().tolist() == [2, 3, 5]


@pytest.mark.parametrize("method", ["teacher", "sliced"])
def test_the_student_begins_as_one_without_the_input(method: Any) -> None:
    teacher = UNet2DConditionModel(**unet_config())
    spec = {"teacher": StudentSpec(single_layer=True), "sliced": StudentSpec(width=0.5)}[method]
    plain = build_student(student_config(spec, teacher.config)[0], 0)
    taking = build_student(
        student_config(StudentSpec(**{**vars(spec), "guidance_embedding": True}), teacher.config)[0], 0
    )
    assert GUIDANCE_WEIGHT in taking.state_dict() and GUIDANCE_WEIGHT not in plain.state_dict()
    initialise(plain, teacher, method)
    initialise(taking, teacher, method)
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), Condition(torch.randn(2, 16, 16))
    torch.testing.assert_close(
        predict(taking, x, t, text.with_guidance(np.float32([1, 7]), taking)), predict(plain, x, t, text)
    )
    with pytest.raises(RcdeployError, match="distilled already"):
        student_config("c-micro", taking.config)


def test_the_embedding_is_counted() -> None:
    plain, taking = (unet_macs(unet_config(**extra)) for extra in ({}, {"time_cond_proj_dim": EMBEDDING_WIDTH}))
    assert taking.total - plain.total == EMBEDDING_WIDTH * unet_config()["block_out_channels"][0]


def test_a_run_learns_a_range_resumes_to_the_bit_and_is_estimated(tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(distill=RANGE, evaluate={"guidance_scale": 3.0}, few_steps={"max_steps": 2, "solver_steps": 2})
    ran(recipe, "one")
    ran_until(recipe, "two", 3)
    ran(recipe, "two")
    same_bytes("one", "two", 6)
    weights = load_file("one/pipeline/unet/diffusion_pytorch_model.safetensors")
    fresh = build_student(student_config(recipe.student_spec, unet_config())[0], recipe.student.seed)
    assert not torch.equal(weights[GUIDANCE_WEIGHT], fresh.state_dict()[GUIDANCE_WEIGHT]), "the scale is learnt"
    sampling = Manifest.read(Path("one"), "run").facts["sampling"]
    assert sampling["guidance_scale"] == 3.0
    train_few_steps(recipe, Path("one/few_steps"), no_progress, lambda _text: None)
    assert Manifest.read(Path("one/few_steps"), "run").facts["sampling"]["guidance_scale"] == 3.0
    description = describe_model(resolve("one"))
    costs = component_costs(description, description.image_size)
    assert description.takes_guidance_scale
    assert image_macs(costs, 25, 3.0, description.takes_guidance_scale) == image_macs(costs, 25, 1.0)
    assert estimate(recipe, "a100-40g")["total"]["seconds"] > 0


def ran_until(recipe: Recipe, folder: str, step: int) -> None:
    with pytest.raises(Killed):
        ran(recipe, folder, at_step(step, fail, "distill"))


def test_the_package_draws_what_diffusers_draws_at_every_scale(
    package: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other networks are those of the small model, whose package the session has."""
    source = Path(shutil.copytree(small_model, tmp_path / "model"))
    config = {k: v for k, v in UNet2DConditionModel.load_config(source / "unet").items() if not k.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        UNet2DConditionModel(**{**config, "time_cond_proj_dim": EMBEDDING_WIDTH}).save_pretrained(source / "unet")

    def trace(component: Any, file: Path, **options: Any) -> None:
        if component.name == "unet":
            export_onnx(component, file, **options)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / component.name / "model.onnx", file)

    monkeypatch.setattr(package_module, "export_onnx", trace)
    package_module.export_package(ExportSource.open(source), tmp_path / "p", ExportOptions(), no_progress)
    manifest = Manifest.read(tmp_path / "p", "package")
    assert manifest.facts["guidance_embedding"] == EMBEDDING_WIDTH
    assert manifest.onnx["unet"]["inputs"]["timestep_cond"]["shape"][1] == EMBEDDING_WIDTH
    runtime = TextToImage.load(tmp_path / "p", threads=1)
    pipeline = StableDiffusionPipeline.from_pretrained(source)
    pipeline.set_progress_bar_config(disable=True)
    model = LatentDiffusionModel(str(source))
    noise = runtime_noise(model, [5], (64, 64))
    pictures = []
    for scale in (2.0, 7.5):
        drawn, _ = runtime.generate("a red shirt", seed=5, guidance_scale=scale, num_inference_steps=4)
        expected = pipeline("a red shirt", latents=noise, guidance_scale=scale, num_inference_steps=4).images[0]
        assert np.abs(np.asarray(drawn[0], int) - np.asarray(expected, int)).max() <= 1
        ours = sample_images(model, ["a red shirt"], noise, guidance_scale=scale, num_inference_steps=4)
        assert np.abs(ours[0].permute(1, 2, 0).numpy() * 255 - np.asarray(expected, int)).max() <= 1
        pictures.append(np.asarray(drawn[0], int))
    assert np.abs(pictures[0] - pictures[1]).max() > 1, "the scale changes the picture"
    with pytest.warns(UserWarning, match="negative prompt is left out"):
        runtime.generate("a red shirt", negative_prompt="a bag", seed=5, num_inference_steps=1)
