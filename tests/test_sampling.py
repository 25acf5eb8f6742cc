"""Our model and sampler compared with diffusers' own pipeline, on the same weights and noise."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from rcdeploy.condition import Condition, training_target
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.sampling import sample_images, sample_latents, starting_noise
from rcdeploy_runtime.errors import RcdeployError

PROMPTS = ["a red sandal", "a blue bag on a white background", ""]


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_images_are_those_of_the_diffusers_pipeline(tiny_teacher: Path, guidance_scale: float) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_teacher).to(dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise = starting_noise(3, range(len(PROMPTS)), teacher.latent_shape())
    theirs = pipeline(
        PROMPTS, latents=noise, num_inference_steps=5, guidance_scale=guidance_scale, output_type="pt"
    ).images
    ours = sample_images(teacher, PROMPTS, noise, num_inference_steps=5, guidance_scale=guidance_scale)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_conditions_are_those_of_the_diffusers_pipeline(tiny_teacher: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_teacher).to(dtype=torch.float32)
    theirs, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    ours = LatentDiffusionModel(str(tiny_teacher)).encode_prompts([*PROMPTS, ""]).prompt_embeds
    torch.testing.assert_close(ours[:3], theirs)
    torch.testing.assert_close(ours[3:], null[:1])


def test_an_image_depends_on_its_index_and_not_on_its_batch(tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    shape = teacher.latent_shape()
    together = sample_images(teacher, PROMPTS, starting_noise(1, range(3), shape), num_inference_steps=2)
    alone = sample_images(teacher, PROMPTS[2:], starting_noise(1, [2], shape), num_inference_steps=2)
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_without_guidance_the_unet_computes_one_branch(tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    calls = []

    class Counting(torch.nn.Module):
        config: ClassVar[dict[str, object]] = {}

        def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
            calls.append(len(x))
            return (torch.zeros_like(x),)

    condition = teacher.encode_prompts(PROMPTS)
    null = teacher.encode_prompts([""])
    noise = starting_noise(0, range(3), teacher.latent_shape())
    for scale, rows in ((1.0, 3), (2.0, 6)):
        calls.clear()
        sample_latents(
            Counting(), teacher.schedule, noise, condition, null, num_inference_steps=4, guidance_scale=scale
        )
        assert calls == [rows] * 4


def test_target_follows_the_prediction_type() -> None:
    x_0 = torch.randn(2, 4, 8, 8)
    noise = torch.randn(2, 4, 8, 8)
    t = torch.tensor([10, 900])
    assert training_target(DDIMScheduler(prediction_type="epsilon"), x_0, noise, t) is noise
    schedule = DDIMScheduler(prediction_type="v_prediction")
    alpha = schedule.alphas_cumprod[t].view(2, 1, 1, 1)
    torch.testing.assert_close(
        training_target(schedule, x_0, noise, t), alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0
    )
    with pytest.raises(RcdeployError, match="sample"):
        training_target(DDIMScheduler(prediction_type="sample"), x_0, noise, t)


def test_added_conditions_go_along_with_the_embeddings() -> None:
    condition = Condition(torch.arange(6.0).view(3, 2, 1), {"text_embeds": torch.arange(3.0)})
    taken = Condition.cat([condition.take([2]), condition.take([0, 1])])
    assert taken.prompt_embeds[:, 0, 0].tolist() == [4, 0, 2]
    assert taken.added["text_embeds"].tolist() == [2, 0, 1]


def test_a_schedule_without_clip_sample_does_not_clip(tiny_teacher: Path) -> None:
    assert LatentDiffusionModel(str(tiny_teacher)).schedule.config.clip_sample is False


def test_the_students_unet_can_be_used_in_the_teachers_place(tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    other = UNet2DConditionModel.from_config(teacher.unet_config).eval()
    noise = starting_noise(0, range(len(PROMPTS)), teacher.latent_shape())
    by_teacher = sample_images(teacher, PROMPTS, noise, num_inference_steps=2)
    assert not torch.allclose(by_teacher, sample_images(teacher, PROMPTS, noise, unet=other, num_inference_steps=2))
