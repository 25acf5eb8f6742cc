"""SLIM's students: the wavelet gating itself, first weights, gradients, folders, the frequency loss, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import save_teacher, unet_config
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_unets import TOY, same_weights, student_of
from training_runs import ran

from rcdeploy.bench.macs import parameters, unet_macs
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.features import feature_taps
from rcdeploy.distill.losses import SPECTRUM_FLOOR, feature_loss, frequency_loss
from rcdeploy.distill.step import StudentWithProjectors
from rcdeploy.evaluate.image_source import open_image_source
from rcdeploy.evaluate.target import EvaluationTarget
from rcdeploy.model_config import WAVELET_GATING, read_unet_config
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy.report.card import write_card
from rcdeploy.student.build import build_on_meta, build_student, load_unet
from rcdeploy.student.init import initialise
from rcdeploy.student.sd14 import SD14_UNET_CONFIG
from rcdeploy.student.spec import StudentSpec, describe_removed, fitting_students, student_config
from rcdeploy.student.wavelet import HaarDwt, HaarIdwt, WaveletDown, WaveletUp, gating_names
from rcdeploy_runtime.errors import RcdeployError

NAME = "slim-b-base"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slim_folder(folder: Path) -> Path:
    """The tiny teacher's folder with a SLIM student in place of its UNet."""
    save_teacher(folder)
    build_student(student_config(NAME, unet_config())[0], 0).save_pretrained(folder / "unet")
    return folder


# the modules


def test_haar_by_hand() -> None:
    """LL is twice the mean; LH rises from line to line, HL from column to column. Nothing is lost or amplified."""
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    assert HaarDwt(1)(image).flatten().tolist() == [5.0, -2.0, -1.0, 0.0]
    x = random(2, 3, 6, 8)
    bands = HaarDwt(3)(x)
    assert bands.shape == (2, 12, 3, 4)
    assert bands.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-5)
    assert torch.allclose(HaarIdwt(3)(bands), x, atol=1e-6)


def test_down_and_up_are_the_papers_formulas() -> None:
    """Written out with slices: each image has gates of its own, one for each band."""
    x = random(2, 8, 4, 6)
    down = WaveletDown(8)
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    bands = [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
    gates = torch.sigmoid(down.gates.ffn(x.mean((2, 3))))
    assert gates.shape == (2, 4) and not torch.equal(gates[0], gates[1])
    expected = sum(gates[:, i].view(2, 1, 1, 1) * band for i, band in enumerate(bands))
    assert torch.allclose(down(x), expected, atol=1e-6)

    up = WaveletUp(8)
    gates = torch.sigmoid(up.gates.ffn(x.mean((2, 3))))
    ll, lh, hl, hh = (gates[:, i].view(2, 1, 1, 1) * chunk for i, chunk in enumerate(x.chunk(4, 1)))
    image = torch.zeros(2, 2, 8, 12)
    image[..., ::2, ::2], image[..., ::2, 1::2] = (ll + lh + hl + hh) / 2, (ll + lh - hl - hh) / 2
    image[..., 1::2, ::2], image[..., 1::2, 1::2] = (ll - lh + hl - hh) / 2, (ll - lh - hl + hh) / 2
    assert torch.allclose(up(x), up.conv(image), atol=1e-6)
    assert up(x, output_size=(8, 12)).shape == (2, 8, 8, 12)


# the student


def test_it_is_b_base_with_other_samplers() -> None:
    config, notes = student_config(NAME, SD14_UNET_CONFIG)
    b_base, _ = student_config("b-base", SD14_UNET_CONFIG)
    assert config == {**b_base, WAVELET_GATING: True} and notes == []
    assert StudentSpec(single_layer=True, wavelet_gating=True).family == "block"
    assert "wavelet gating" in describe_removed(NAME, SD14_UNET_CONFIG)


def test_parameters_and_macs_of_sd14() -> None:
    """b-base's, less its samplers, plus gates and WaveletUp's convolutions, each written out."""
    unet = build_on_meta(student_config(NAME, SD14_UNET_CONFIG)[0])
    plain = build_on_meta(student_config("b-base", SD14_UNET_CONFIG)[0])
    downs, ups = [(320, 32), (640, 16), (1280, 8)], [(1280, 16), (1280, 32), (640, 64)]  # (channels, side after it)

    def ffn(c: int) -> int:
        return c * c // 4 + c // 4 + c + 4

    def conv(c: int) -> int:
        return 9 * c * c + c

    new = sum(ffn(c) for c, _ in downs + ups) + sum(c * c // 4 + c for c, _ in ups)
    count = parameters(plain) - sum(conv(c) for c, _ in downs + ups) + new
    assert parameters(unet) == count == 529_239_148
    macs, plain_macs = unet_macs(unet), unet_macs(plain)
    removed = sum(9 * c * c * side * side for c, side in downs + ups)
    gates = sum(c * c // 4 + c for c, _ in downs + ups)
    transforms = sum(4 * c * 4 * side * side for c, side in downs) + sum(c * side * side for c, side in ups)
    convolutions = sum(c * c // 4 * side * side for c, side in ups)
    assert macs.thop == plain_macs.thop - removed + gates + transforms + convolutions == 187_909_232_960
    assert macs.attention == plain_macs.attention
    assert round(macs.total / 1e9, 2) == 225.65


def test_first_weights() -> None:
    """All but the gating is what b-base takes from the teacher; the gating is random by the seed."""
    teacher = build_student(TOY, seed=7)
    student, again, other = (build_student(student_of(NAME), seed) for seed in (0, 0, 1))
    b_base = build_student(student_of("b-base"), seed=0)
    random_weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    for unet in (student, b_base):
        initialise(unet, teacher, "teacher")
    names = gating_names(student)
    assert len(names) == 3 * 4 + 3 * 6
    expected = b_base.state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, random_weights[name] if name in names else expected[name]), name
    assert same_weights(build_student(student_of(NAME), 0), again) and not same_weights(again, other)
    # a teacher that has wavelet gating itself gives it on
    copy = build_student(student_of(NAME), seed=3)
    initialise(copy, student, "teacher")
    assert same_weights(copy, student)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_weight_gets_a_gradient(checkpointing: bool) -> None:
    config, _ = student_config(NAME, unet_config())
    taps = feature_taps(unet_config(), config)
    model = StudentWithProjectors(build_student(config, 0), taps, gradient_checkpointing=checkpointing).train()
    # 16 x 16: of a single token an attention has no gradient
    output, features = model(random(2, 4, 16, 16), torch.tensor([10, 700]), random(2, 5, 16), {})
    assert [f.shape[1] for f in features] == [tap.teacher_channels for tap in taps]
    pairs = [torch.zeros_like(x) for x in (output, *features)]
    frequency_loss(pairs, [output, *features], random(2, 4, 8, 8)).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


# folders


def test_a_folder_opens_with_rcdeploy_and_not_with_diffusers_alone(tmp_path: Path) -> None:
    folder = slim_folder(tmp_path / "slim")
    config = json.loads((folder / "unet/config.json").read_text())
    assert config[WAVELET_GATING] is True and config["_class_name"] == "UNet2DConditionModel"
    expected = build_student(student_config(NAME, unet_config())[0], 0)
    assert same_weights(LatentDiffusionModel(str(folder)).unet, expected)
    assert same_weights(load_unet(folder / "unet"), expected)
    half = load_unet(folder / "unet", torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert half.down_blocks[0].downsamplers[0].dwt.filters.unique().tolist() == [-0.5, 0.5]
    with pytest.raises(ValueError, match=r"upsamplers\.0\.conv\.weight"):  # not a warning, and not random weights
        UNet2DConditionModel.from_pretrained(folder / "unet")
    with pytest.raises((ValueError, OSError)):
        StableDiffusionPipeline.from_pretrained(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, unet=load_unet(folder / "unet"))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a bag", num_inference_steps=2, output_type="np").images.shape == (1, 64, 64, 3)


def test_sizes_are_those_that_halve(tmp_path: Path) -> None:
    folder = slim_folder(tmp_path / "slim")
    description = describe_model(resolve(str(folder)))
    assert description.size_multiple == 8 * 8
    assert description.latent_size((64, 128)) == (8, 16)
    with pytest.raises(RcdeployError, match="multiples of 64 pixels"):
        description.latent_size((64, 72))
    assert describe_model(resolve(NAME)).size_multiple == 64 and describe_model(resolve("b-base")).size_multiple == 8
    unet = load_unet(folder / "unet")
    with torch.no_grad():
        assert unet(random(1, 4, 8, 16), 5, random(1, 5, 16)).sample.shape == (1, 4, 8, 16)
        with pytest.raises(RcdeployError, match="halve features of 3 x 4: both sides must be even"):
            unet(random(1, 4, 12, 16), 5, random(1, 5, 16))


def test_training_and_what_comes_after_it(tiny_recipe: Callable[..., Recipe]) -> None:
    """Two steps with all losses; the pipeline, a checkpoint and a resumed run are the same student."""
    loss = {"output": 0.1, "feature": 0.1, "task": 1.0, "frequency": 0.1}
    settings = {"max_steps": 2, "ema_decay": 0.5}
    recipe = tiny_recipe(student={"name": NAME, "init": "teacher"}, loss=loss, train=settings)
    ran(recipe)
    entry = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    total = sum(weight * entry[name] for name, weight in loss.items())
    assert entry["loss"] == pytest.approx(total, rel=1e-4) and entry["frequency"] > 0
    pipeline = LatentDiffusionModel("run/pipeline")
    assert read_unet_config(Path("run/pipeline"))[WAVELET_GATING] is True
    model = resolve("run")
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    sources = [open_image_source(EvaluationTarget.of(model, at), "cpu") for at in (None, "last")]
    images = [source.generate(["a red bag"], [3], settings) for source in sources]
    assert (images[0].int() - images[1].int()).abs().max() <= 1  # the pipeline is stored in half precision
    assert len(gating_names(pipeline.unet)) == 3 * 4 + 3 * 6
    card = write_card(Path("run")).read_text()
    assert 'from_pretrained(folder, unet=load_unet(f"{folder}/unet"), dtype=torch.float32)' in card
    assert "import load_unet" in card


# the frequency loss


def test_frequency_loss_by_hand() -> None:
    teacher, student, x_0 = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1), random(2, 5, 8, 8, seed=2)
    # Parseval: without weights it is equation 2
    expected = feature_loss([teacher], [student])
    assert torch.allclose(frequency_loss([teacher], [student], x_0, exponent=0.0), expected, rtol=1e-5)
    resized = x_0.view(2, 5, 4, 2, 4, 2).mean((3, 5))
    total = 0.0
    for n in range(2):
        magnitude = torch.stack([torch.fft.fft2(channel).abs() / 4 for channel in resized[n]]).mean(0)
        for c in range(3):
            spectra = [torch.fft.fft2(x[n, c]) / 4 for x in (teacher, student)]
            total += ((spectra[0] - spectra[1]).abs().square() / magnitude).sum().item()
    assert frequency_loss([teacher], [student], x_0).item() == pytest.approx(total / (2 * 3 * 16), rel=1e-4)
    two = frequency_loss([teacher, teacher], [student, student], x_0)
    assert two.item() == pytest.approx(2 * total / (2 * 3 * 16), rel=1e-4)


def test_frequency_loss_weighs_up_what_x_0_lacks() -> None:
    """And stays finite where x_0 has nothing at all of a frequency."""
    x_0 = torch.ones(1, 2, 8, 8)  # the mean alone
    constant, stripes = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    stripes[..., ::2] = -1
    zero = torch.zeros(1, 1, 8, 8)
    low, high = (frequency_loss([zero], [x], x_0).item() for x in (constant, stripes))
    assert low == pytest.approx(1 / 8) and high == pytest.approx(1 / SPECTRUM_FLOOR)


# bad input


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sample_size": 12}, "latents of 12 x 12 .* odd side when they are halved 3 times"),
        ({"sample_size": [8, 9]}, "latents of 8 x 9"),
        ({"sample_size": "big"}, "sample_size is big"),
        ({"block_out_channels": [8, 8, 10, 16]}, "10 channels cannot be split into the 4 bands"),
        (
            {"block_out_channels": [8], "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["UpBlock2D"]},
            "one stage, and so no downsampler",
        ),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["KDownBlock2D"]}, "samplers of its KDownBlock2D"),
    ],
)
def test_teachers_that_it_does_not_fit(changes: dict[str, object], reason: str) -> None:
    teacher = unet_config(**changes)
    with pytest.raises(RcdeployError, match=reason) as raised:
        student_config(NAME, teacher)
    assert raised.value.message.startswith(f"student {NAME} does not fit the teacher")
    assert NAME not in fitting_students(teacher)


def test_a_recipe_names_it(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    save_teacher(tmp_path / "odd", sample_size=12)
    with pytest.raises(RcdeployError) as raised:
        load_recipe(recipe_file(teacher={"path": "odd"}, student={"name": NAME}))
    assert any("student.name" in error and "12 x 12" in error for error in raised.value.errors)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (WAVELET_GATING, "haar", "is 'haar'; true and false are known"),
        (WAVELET_GATING, 1, "is '1'; true and false are known"),
        ("rcdeploy_something", True, "rcdeploy_something is 'True'; only rcdeploy_wavelet_gating"),
    ],
)
def test_unknown_parts_are_refused(key: str, value: object, reason: str, tmp_path: Path) -> None:
    folder = slim_folder(tmp_path / "slim")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, key: value}))
    for opened in (lambda: LatentDiffusionModel(str(folder)), lambda: load_unet(folder / "unet")):
        with pytest.raises(RcdeployError, match=reason):
            opened()
    with pytest.raises(RcdeployError, match=reason):
        build_on_meta({**config, key: value})


def test_a_config_that_lies_is_refused(tmp_path: Path) -> None:
    """The key without the weights, the weights without the key, weights that lack a tensor, a UNet without samplers."""
    folder = slim_folder(tmp_path / "slim")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    gate = "up_blocks.1.upsamplers.0.gates.ffn.2.bias"
    save_file({k: v for k, v in tensors.items() if k != gate}, weights)
    with pytest.raises(RcdeployError) as raised:
        LatentDiffusionModel(str(folder)).load("unet")
    assert raised.value.errors == (f"unet lacks the tensor {gate}",)
    save_file({**tensors, gate: torch.zeros(3)}, weights)
    with pytest.raises(RcdeployError, match="do not fit") as raised:
        LatentDiffusionModel(str(folder)).load("unet")
    assert raised.value.errors == (f"unet: {gate} has the shape [3], not [4]",)
    with pytest.raises(RcdeployError, match="do not fit its config"):
        load_unet(folder / "unet")
    save_file(tensors, weights)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, WAVELET_GATING: False}))
    with pytest.raises(RcdeployError, match="cannot be loaded"):
        LatentDiffusionModel(str(folder)).load("unet")
    one_stage = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    with pytest.raises(RcdeployError, match="no downsampler or upsampler"):
        build_on_meta({**unet_config(**one_stage), WAVELET_GATING: True})
