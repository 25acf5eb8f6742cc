"""generator="torch": a seed's noise is torch's, and its image the one that diffusers' pipeline draws from that seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_samplers import peer_of
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.__main__ import main
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.noise import TorchGenerator, seeded_noise

SEEDS = (0, 5, 2**32 - 1, 2**32 + 5, -1, -(2**63), 2**64 - 1)
PROMPTS = ["a red bag", "a coat"]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def model(package: Path) -> TextToImage:
    return TextToImage.load(package, threads=1)


@pytest.fixture(scope="module")
def pipeline(small_model: Path) -> Any:
    made = diffusers.StableDiffusionPipeline.from_pretrained(small_model, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def schedule(small_model: Path) -> dict[str, Any]:
    return read_json(small_model / "scheduler/scheduler_config.json")


def torch_generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_are_those_of_torch(seed: int) -> None:
    """Of one generator after another draw: few numbers are drawn singly, the second of a pair waits for the next."""
    ours, theirs = TorchGenerator(seed), torch_generator(seed)
    for shape in ((1,), (3, 5), (16,), (1,), (17,), (2, 2), (31,), (7,), (4, 8, 8), (4, 9, 7), (4, 64, 64)):
        drawn, expected = ours.standard_normal(shape), torch.randn(shape, generator=theirs).numpy()
        assert drawn.shape == expected.shape and drawn.dtype == expected.dtype
        # torch's logarithm, sine and cosine of vectors differ from numpy's in the last bits
        assert np.abs(drawn - expected).max() <= (1e-6 if drawn.size >= 16 else 0)


def test_known_numbers() -> None:
    """The first of torch.manual_seed(0); torch.randn(16), printed."""
    drawn = TorchGenerator(0).standard_normal((16,))
    assert np.allclose(drawn[:4], [-1.1258398, -1.1523602, -0.2505786, -0.4338788], atol=1e-6)


def test_a_batch_is_that_of_a_list_of_generators() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    noise = seeded_noise((3, 4, 5), (4, 6, 5), "torch")
    generators = [torch_generator(seed) for seed in (3, 4, 5)]
    for _ in range(3):
        assert np.allclose(noise(), randn_tensor((3, 4, 6, 5), generator=generators).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        ("ddim", {"seed": 0}),
        ("ddim", {"seed": 3, "eta": 1.0}),
        ("ddim", {"seed": 2**40 + 1, "eta": 0.4, "height": 64, "width": 128}),
        ("pndm", {"seed": 1}),
        ("euler", {"seed": 1}),
        ("euler_ancestral", {"seed": 7}),
        ("euler_ancestral", {"seed": -5, "height": 128, "width": 64}),
        ("heun", {"seed": 1}),
        ("dpm++", {"seed": 1}),
        ("dpm++_sde", {"seed": 9}),
        ("unipc", {"seed": 1}),
        ("lcm", {"seed": 11}),
        ("tcd", {"seed": 2, "eta": 0.3}),
    ],
)
def test_images_are_those_of_the_diffusers_pipeline(
    model: TextToImage, pipeline: Any, schedule: dict[str, Any], sampler: str, settings: dict[str, Any]
) -> None:
    shared = {"num_inference_steps": 4, "guidance_scale": 2.0}
    ours, record = model.generate(PROMPTS, sampler=sampler, generator="torch", **shared, **settings)
    assert record["generator"] == "torch" and record["eta"] == settings.get("eta", 0.0)
    pipeline.scheduler = peer_of(sampler, schedule)
    seed = settings.pop("seed")
    generators = [torch_generator(seed + k) for k in range(len(PROMPTS))]
    theirs = pipeline(PROMPTS, generator=generators, **shared, **settings).images
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [("ddim", 0.5), ("ddim", 1.0), ("euler_ancestral", 0.6), ("heun", 0.6), ("dpm++_sde", 0.6), ("unipc", 0.6)],
)
def test_img2img_is_that_of_the_diffusers_pipeline(
    model: TextToImage, pipeline: Any, schedule: dict[str, Any], sampler: str, strength: float
) -> None:
    """The image's latents are sampled first, then the noise."""
    shared = {"num_inference_steps": 6, "guidance_scale": 2.0, "image": IMAGE, "strength": strength}
    ours, _ = model.generate(PROMPTS, seed=4, sampler=sampler, generator="torch", **shared)
    peer = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    peer.scheduler = peer_of(sampler, schedule)
    peer.set_progress_bar_config(disable=True)
    theirs = peer(PROMPTS, generator=[torch_generator(4), torch_generator(5)], **shared).images
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_nothing_is_drawn_for_a_vae_without_a_posterior(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an AutoencoderTiny, whose encoder diffusers asks for latents, not for a distribution."""
    moments = np.full((1, 8, 8, 8), -30, np.float32)
    monkeypatch.setattr(model.networks, "_vae_encoder", lambda sample: moments)
    latents = model.networks.encode_image(IMAGE, 64, 64, lambda: pytest.fail("noise was drawn"))
    assert latents.shape == (1, 4, 8, 8) and np.allclose(latents, -15)


def test_inpainting_is_refused(model: TextToImage) -> None:
    with pytest.raises(RcdeployError, match="mask") as caught:
        model.generate("a bag", image=IMAGE, mask=IMAGE, generator="torch")
    assert "Leave generator out" in caught.value.fix
    with pytest.raises(RcdeployError, match="generator is 'numpy'"):
        model.generate("a bag", generator="numpy")


def test_both_commands_take_it(model: TextToImage, package: Path, tmp_path: Path) -> None:
    words = ["generate", str(package), "a bag", "--steps", "2", "--seed", "3", "--generator", "torch", "--eta", "1"]
    expected, _ = model.generate("a bag", num_inference_steps=2, seed=3, generator="torch", eta=1.0)
    assert main([*words, "-q", "-o", "a.png"]) == 0
    done = CliRunner().invoke(app, [*words, "-o", "b.png"])
    assert done.exit_code == 0, done.output
    for name in ("a.png", "b.png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(expected[0]))
    assert main([*words, "--sampler", "euler"]) == 2
