"""Distillation: feature taps, gradients, losses."""

from __future__ import annotations

import pytest
import torch
from conftest import unet_config
from diffusers import DDIMScheduler, UNet2DConditionModel
from training_runs import STUDENTS

from rcdeploy.condition import training_target
from rcdeploy.conditioning import NULL, PAIRED, UNPAIRED
from rcdeploy.distill.features import FeatureRecorder, feature_taps
from rcdeploy.distill.losses import feature_loss, output_loss, task_loss
from rcdeploy.distill.step import StudentWithProjectors
from rcdeploy.student.build import build_student
from rcdeploy.student.spec import StudentSpec, student_config
from rcdeploy_runtime.errors import RcdeployError

OWN_LAYERS = StudentSpec(layers=(2, 1, 2), drop_mid_block=True, drop_innermost_stage=True)
"""b-tiny's stages, with layers of their own number"""


def features_of(
    student: str | StudentSpec, *, checkpointing: bool
) -> tuple[StudentWithProjectors, list[torch.Tensor], list[str]]:
    config, _ = student_config(student, unet_config())
    taps = feature_taps(unet_config(), config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StudentWithProjectors(build_student(config, 0), taps, gradient_checkpointing=checkpointing).train()
        x = torch.randn(2, 4, 8, 8)
        text = torch.randn(2, 5, 16)
    _, features = model(x, torch.tensor([10, 700]), text, {})
    return model, features, [tap.student for tap in taps]


def gradients(model: StudentWithProjectors, feature: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    all_gradients = torch.autograd.grad(
        feature.square().mean(), list(named.values()), retain_graph=True, allow_unused=True
    )
    return {name: g for name, g in zip(named, all_gradients, strict=True) if g is not None}


@pytest.mark.parametrize("student", [*STUDENTS, OWN_LAYERS])
def test_every_tap_reaches_the_student(student: str | StudentSpec) -> None:
    """With and without gradient checkpointing, by the same gradients: none of the taps is dead."""
    plain, features, names = features_of(student, checkpointing=False)
    saving, again, _ = features_of(student, checkpointing=True)
    assert saving.unet.is_gradient_checkpointing and not plain.unet.is_gradient_checkpointing
    for name, feature, feature_again in zip(names, features, again, strict=True):
        expected = gradients(plain, feature)
        actual = gradients(saving, feature_again)
        inside = [k for k in expected if k.startswith(f"unet.{name}.")]
        assert any(expected[k].abs().max() > 0 for k in inside), f"{name}: nothing reaches the tapped block"
        before = [k for k in expected if k.startswith("unet.conv_in.")]
        assert all(expected[k].abs().max() > 0 for k in before), f"{name}: nothing reaches the first layer"
        assert expected.keys() == actual.keys()
        for key in expected:
            assert torch.allclose(expected[key], actual[key], rtol=1e-4, atol=1e-7), (name, key)


def test_taps_are_the_papers() -> None:
    def pairs(student: str | StudentSpec) -> list[tuple[str, str]]:
        return [
            (tap.student, tap.teacher) for tap in feature_taps(unet_config(), student_config(student, unet_config())[0])
        ]

    downs = [f"down_blocks.{i}" for i in range(4)]
    ups = [f"up_blocks.{i}" for i in range(4)]
    assert pairs("b-base") == pairs("b-small") == [(n, n) for n in downs + ups]
    assert pairs("c-base") == pairs("c-micro") == [(n, n) for n in [*downs, "mid_block", *ups]]
    assert pairs(StudentSpec(layers=(2, 1, 1, 2))) == pairs("b-base")
    assert pairs(OWN_LAYERS)[2] == ("down_blocks.2.attentions.1",) * 2 and len(pairs(OWN_LAYERS)) == 6
    assert pairs("b-tiny") == [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1", "down_blocks.1"),
        ("down_blocks.2.attentions.0", "down_blocks.2.attentions.1"),
        ("up_blocks.0", "up_blocks.1"),
        ("up_blocks.1", "up_blocks.2"),
        ("up_blocks.2", "up_blocks.3"),
    ]


@pytest.mark.parametrize("student", [*STUDENTS, OWN_LAYERS])
def test_student_features_have_the_teachers_shapes(student: str | StudentSpec) -> None:
    teacher = UNet2DConditionModel(**unet_config()).eval()
    taps = feature_taps(unet_config(), student_config(student, unet_config())[0])
    recorder = FeatureRecorder(teacher, [tap.teacher for tap in taps])
    with torch.no_grad(), recorder.recording() as expected:
        teacher(torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), torch.zeros(2, 5, 16))
    _, features, _ = features_of(student, checkpointing=False)
    assert [f.shape for f in features] == [f.shape for f in expected]


# losses


def test_losses_by_hand() -> None:
    a = torch.zeros(2, 1, 1, 2)
    b = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2)
    assert output_loss(a, b).item() == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert feature_loss([a, a], [b, 2 * b]).item() == pytest.approx(7.5 + 30)


def test_the_task_loss_is_of_true_pairs_alone() -> None:
    target = torch.zeros(4, 1, 1, 1)
    output = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1).requires_grad_()
    loss = task_loss(target, output, torch.tensor([PAIRED, UNPAIRED, NULL, UNPAIRED]) != UNPAIRED)
    (gradient,) = torch.autograd.grad(loss, output)
    assert loss.item() == pytest.approx((1 + 9) / 4)
    assert gradient.flatten().tolist() == pytest.approx([0.5, 0, 1.5, 0])
    assert task_loss(target, output, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_the_target_is_noise_or_velocity() -> None:
    x = torch.randn(2, 4, 2, 2)
    noise = torch.randn(2, 4, 2, 2)
    t = torch.tensor([5, 900])
    schedule = DDIMScheduler()
    assert torch.equal(training_target(schedule, x, noise, t), noise)
    a = schedule.alphas_cumprod[t].view(2, 1, 1, 1)
    velocity = training_target(DDIMScheduler(prediction_type="v_prediction"), x, noise, t)
    assert torch.allclose(velocity, a.sqrt() * noise - (1 - a).sqrt() * x, atol=1e-6)
    with pytest.raises(RcdeployError, match="neither epsilon nor v_prediction"):
        training_target(DDIMScheduler(prediction_type="sample"), x, noise, t)
