"""A student's first weights, copied from the teacher or sliced out of it (on toy UNets)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from toy_unets import TOY, TOY_XL, run_unet, same_weights, student_of

from rcdeploy.student.build import build_on_meta, build_student
from rcdeploy.student.init import initialise, share_weights, slice_channels
from rcdeploy.student.init_check import init_problem
from rcdeploy.student.spec import STUDENTS, StudentSpec, find_student, student_config
from rcdeploy.student.wavelet import gating_names
from rcdeploy_runtime.errors import RcdeployError

torch.set_num_threads(1)


# --- copied from the teacher -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher() -> UNet2DConditionModel:
    """Random weights: every tensor differs from every other, norms and biases too."""
    return _scramble(build_student(TOY, seed=0))


@pytest.fixture(scope="module")
def teacher_xl() -> UNet2DConditionModel:
    return _scramble(build_student(TOY_XL, seed=0))


def _scramble(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5)
    return unet


# student prefix -> teacher prefix, wherever the name changes (reference: BK-SDM's maps, KOALA's)
LAST_LAYER = {f"up_blocks.{i}.resnets.1.": f"up_blocks.{i}.resnets.2." for i in range(4)} | {
    f"up_blocks.{i}.attentions.1.": f"up_blocks.{i}.attentions.2." for i in range(4)
}
ONE_STAGE_ON = {
    f"up_blocks.{i}.{kind}.{a}.": f"up_blocks.{i + 1}.{kind}.{b}."
    for i in range(3)
    for kind, a, b in [
        ("resnets", 0, 0),
        ("attentions", 0, 0),
        ("resnets", 1, 2),
        ("attentions", 1, 2),
        ("upsamplers", 0, 0),
    ]
}


@pytest.mark.parametrize("name, renamed", [("b-base", LAST_LAYER), ("b-small", LAST_LAYER), ("b-tiny", ONE_STAGE_ON)])
def test_teacher_weights_land_where_the_map_says(
    teacher: UNet2DConditionModel, name: str, renamed: dict[str, str]
) -> None:
    student = build_student(student_of(name), seed=1)
    initialise(student, teacher, "teacher")
    _assert_mapped(student, teacher, renamed)
    assert run_unet(student).isfinite().all()


def test_of_layers_the_first_are_copied_and_of_up_blocks_also_the_last() -> None:
    teacher = _scramble(build_student(TOY | {"layers_per_block": 3}, seed=0))
    spec = StudentSpec(layers=(2, 1, 3), drop_mid_block=True, drop_innermost_stage=True)
    student = build_student(student_config(spec, teacher.config)[0], seed=1)
    initialise(student, teacher, "teacher")
    renamed = {}  # its up block i is the teacher's i + 1; the innermost first
    for i, layers in enumerate((3, 1, 2)):
        renamed |= {f"up_blocks.{i}.upsamplers.0.": f"up_blocks.{i + 1}.upsamplers.0."}
        for j in range(layers + 1):
            of = 3 if j == layers else j
            for kind in ("resnets", "attentions"):
                renamed[f"up_blocks.{i}.{kind}.{j}."] = f"up_blocks.{i + 1}.{kind}.{of}."
    _assert_mapped(student, teacher, renamed)
    assert run_unet(student).isfinite().all()
    shared = build_on_meta(student.config)
    share_weights(shared, teacher)
    assert same_weights(shared, student)
    theirs = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert {tensor.data_ptr() for tensor in shared.state_dict().values()} <= theirs
    with pytest.raises(RcdeployError, match="cannot copy the weights"):
        share_weights(build_on_meta(student_of("c-tiny")), teacher)


@pytest.mark.parametrize("name", ["koala-700m", "koala-1b"])
def test_koala_weights_land_where_the_map_says(teacher_xl: UNet2DConditionModel, name: str) -> None:
    student = build_student(student_config(name, TOY_XL)[0], seed=1)
    initialise(student, teacher_xl, "teacher")
    _assert_mapped(student, teacher_xl, LAST_LAYER)
    names = student.state_dict()
    assert "up_blocks.0.attentions.1.transformer_blocks.4.attn1.to_q.weight" in names
    assert ("mid_block.attentions.0.transformer_blocks.5.attn1.to_q.weight" in names) == (name == "koala-1b")


def _assert_mapped(student: UNet2DConditionModel, teacher: UNet2DConditionModel, renamed: dict[str, str]) -> None:
    source = teacher.state_dict()
    changed = 0
    for name, tensor in student.state_dict().items():
        prefix = next((prefix for prefix in renamed if name.startswith(prefix)), "")
        changed += bool(prefix)
        assert torch.equal(tensor, source[renamed.get(prefix, "") + name.removeprefix(prefix)]), name
    assert changed > 20


def test_teacher_weights_that_do_not_fit_are_named(
    teacher: UNet2DConditionModel, teacher_xl: UNet2DConditionModel
) -> None:
    with pytest.raises(RcdeployError, match="cannot copy the weights"):
        initialise(build_student(student_of("c-tiny"), seed=0), teacher, "teacher")
    tiny = build_student(student_config("b-tiny", TOY_XL)[0], seed=0)
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    with pytest.raises(RcdeployError, match=r"up_blocks\.0\.resnets\.0\.norm1\.weight"):
        initialise(tiny, teacher_xl, "teacher")
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    # a student with something that its teacher lacks
    bare = build_student(TOY | {"mid_block_type": None}, seed=0)
    with pytest.raises(RcdeployError, match="mid_block.*the teacher has no"):
        initialise(build_student(student_of("b-base"), seed=0), bare, "teacher")


# --- sliced ----------------------------------------------------------------------------------------------------------
#
# A teacher is made by repeating every channel of a small UNet, dividing what reads them so that all sums stay as they
# were. It computes what the small UNet does only if the repetition keeps heads, norm groups, gates and skips together,
# and slicing must take it back to the small UNet, tensor by tensor.

SMALL = TOY | {"block_out_channels": [8, 12, 16, 16]}
EVEN, UNEVEN = [16, 24, 32, 32], [16, 36, 48, 48]


def _skip_stages(name: str) -> tuple[int, int] | None:
    """Stages that [hidden; skip] of an up-block resnet with three layers come from; None for other tensors."""
    parts = name.split(".")
    if parts[0] != "up_blocks" or parts[2] != "resnets":
        return None
    if parts[4] != "norm1" and parts[4:] not in (["conv1", "weight"], ["conv_shortcut", "weight"]):
        return None
    stage, layer = 3 - int(parts[1]), int(parts[3])
    return min(stage + 1, 3) if layer == 0 else stage, max(stage - 1, 0) if layer == 2 else stage


def _divided(name: str, tensor: torch.Tensor, shape: torch.Size, widths: list[int]) -> torch.Tensor:
    """The small UNet's tensor, with each input's weight divided by the number of times that input is repeated."""
    if tensor.ndim < 2 or name == "time_embedding.linear_1.weight":
        return tensor
    if stages := _skip_stages(name):
        pieces = tensor.split([SMALL["block_out_channels"][stage] for stage in stages], 1)
        times = [widths[stage] // SMALL["block_out_channels"][stage] for stage in stages]
        return torch.cat([piece / count for piece, count in zip(pieces, times, strict=True)], 1)
    divided = tensor / (shape[1] // tensor.shape[1])
    # q k^T sums r times as many products and is divided by sqrt(r) times as much
    return divided / (shape[0] // tensor.shape[0]) ** 0.5 if "to_q" in name else divided


def _spread(name: str, tensor: torch.Tensor, shape: torch.Size, widths: list[int]) -> torch.Tensor:
    """The tensor with its channels repeated up to `shape`."""
    stages = _skip_stages(name)
    for dim, size in enumerate(shape):
        if name == "time_embedding.linear_1.weight" and dim == 1:
            # [cos; sin] of the teacher's frequencies, of which every second one is the student's
            wide = torch.zeros(tensor.shape[0], size)
            wide[:, ::2] = tensor
            tensor = wide
        elif stages and dim == (0 if "norm1" in name else 1):
            small = [SMALL["block_out_channels"][stage] for stage in stages]
            pieces = zip(tensor.split(small, dim), stages, small, strict=True)
            tensor = torch.cat([p.repeat_interleave(widths[stage] // size, dim) for p, stage, size in pieces], dim)
        else:
            tensor = tensor.repeat_interleave(size // tensor.shape[dim], dim)
    return tensor


def _repeated(widths: list[int]) -> tuple[UNet2DConditionModel, UNet2DConditionModel, dict[str, torch.Tensor]]:
    """(small UNet, teacher that repeats it, the small UNet's divided tensors, which slicing must give)."""
    small = _scramble(build_student(SMALL, seed=0))
    teacher = build_student(SMALL | {"block_out_channels": widths}, seed=0)
    shapes = {name: tensor.shape for name, tensor in teacher.state_dict().items()}
    divided = {name: _divided(name, tensor, shapes[name], widths) for name, tensor in small.state_dict().items()}
    teacher.load_state_dict({name: _spread(name, divided[name], shape, widths) for name, shape in shapes.items()})
    return small, teacher, divided


@pytest.mark.parametrize("widths", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_slicing_undoes_repetition(widths: list[int]) -> None:
    small, teacher, divided = _repeated(widths)
    student = build_student(SMALL, seed=1)
    initialise(student, teacher, "sliced")
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, divided[name]), name
    if widths == EVEN:  # else norm groups over [hidden; skip] weigh the two parts otherwise
        torch.testing.assert_close(run_unet(teacher), run_unet(small), rtol=1e-4, atol=1e-4)


def test_a_slice_starts_closer_to_its_teacher_than_chance() -> None:
    _, teacher, _ = _repeated(EVEN)
    expected = run_unet(teacher)
    student = build_student(SMALL, seed=1)
    initialise(student, teacher, "sliced")
    sliced = (run_unet(student) - expected).square().mean()
    for seed in range(3):
        random = build_student(SMALL, seed)
        assert sliced < 0.2 * (run_unet(random) - expected).square().mean()


@pytest.mark.parametrize("width", [320, 640, 1280, 40, 80])
@pytest.mark.parametrize("factor", [0.8, 0.7, 0.6, 0.5])
def test_slices_stay_inside_their_head_group_and_half(width: int, factor: float) -> None:
    size = round(width * factor)
    channels = slice_channels(torch.arange(width), 0, size)
    assert channels.unique().numel() == size
    for parts in (2, 4, *((8, 32) if width >= 320 else ())):
        by_part = channels.reshape(parts, -1)
        start = torch.arange(parts)[:, None] * (width // parts)
        # every part is the first one, moved: a gate is the gate of its value, and a head looks like every other
        assert torch.equal(by_part, by_part[:1] + start)
        assert by_part[0, -1] < width // parts


@pytest.mark.parametrize("name", ["c-base", "c-small", "c-tiny", "c-micro"])
def test_sliced_students_of_every_width(teacher: UNet2DConditionModel, name: str) -> None:
    student = build_student(student_of(name), seed=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(float("nan"))
    initialise(student, teacher, "sliced")
    assert run_unet(student).isfinite().all()
    theirs = {float(value) for value in teacher.conv_in.weight.detach().flatten()}
    assert {float(value) for value in student.conv_in.weight.detach().flatten()} <= theirs


@pytest.mark.parametrize("name", ["b-base", "b-small", "b-tiny", "slim-b-base"])
def test_a_block_student_is_sliced_out_of_what_it_keeps(teacher: UNet2DConditionModel, name: str) -> None:
    """Slices of the copied tensors: the rules of both methods at once."""
    copied = build_student(student_of(name), seed=0)
    initialise(copied, teacher, "teacher")
    narrow = build_student(student_config(replace(find_student(name), width=0.5), TOY)[0], seed=0)
    initialise(narrow, teacher, "sliced")
    assert run_unet(narrow).isfinite().all()
    whole = copied.state_dict()
    gating = gating_names(narrow)
    for tensor_name, tensor in narrow.state_dict().items():
        if tensor_name in gating or _reads_skip(tensor_name):
            continue
        expected = whole[tensor_name]
        for dim, size in enumerate(tensor.shape):
            expected = slice_channels(expected, dim, size)
        assert torch.equal(tensor, expected), tensor_name


def _reads_skip(name: str) -> bool:
    return name.startswith("up_blocks") and any(part in name for part in (".norm1.", ".conv1.weight", ".conv_shortcut"))


def test_what_cannot_be_sliced(teacher: UNet2DConditionModel) -> None:
    # rounded so far that two stages have one width, and the shortcut between them is gone
    merged = build_student(student_config(StudentSpec(width=0.01), TOY)[0], seed=0)
    with pytest.raises(RcdeployError, match="conv_shortcut"):
        initialise(merged, teacher, "sliced")
    with pytest.raises(RcdeployError, match="attention_head_dim is 2, the teacher's 4"):
        initialise(build_student(student_of("c-tiny") | {"attention_head_dim": 2}, seed=0), teacher, "sliced")
    with pytest.raises(RcdeployError, match="conv_in.weight.*cannot be sliced"):
        initialise(build_student(TOY, seed=0), build_student(student_of("c-tiny"), seed=0), "sliced")


# --- the check of a recipe -------------------------------------------------------------------------------------------

TEACHERS = {
    "toy": TOY,
    "toy-xl": TOY_XL,
    "innermost stages of two widths": TOY | {"block_out_channels": [8, 16, 16, 24]},
    "all stages of one width": TOY | {"block_out_channels": [16, 16, 16, 16]},
    "three layers": TOY | {"layers_per_block": 3},
    "no mid block": TOY | {"mid_block_type": None},
}


SHORT = ("toy", "no mid block")
"""the others take ten seconds each"""


@pytest.mark.parametrize(
    "teacher_config",
    [pytest.param(c, id=name, marks=() if name in SHORT else pytest.mark.slow) for name, c in TEACHERS.items()],
)
def test_the_check_of_configs_agrees_with_the_tensors(teacher_config: dict[str, Any]) -> None:
    specs = {**STUDENTS, "0.3": StudentSpec(width=0.3), "0.01": StudentSpec(width=0.01)}
    specs["layers"] = StudentSpec(layers=(2, 1, 1, 2)[: len(teacher_config["block_out_channels"])])
    specs |= {f"{name}, 0.5": replace(STUDENTS[name], width=0.5) for name in ("b-tiny", "b-small", "koala-1b")}
    teacher = build_on_meta(teacher_config)
    problems = 0
    for name, spec in specs.items():
        try:
            config, _ = student_config(spec, teacher_config)
        except RcdeployError:
            continue
        for method in ("teacher", "sliced"):
            problem = init_problem(method, spec, teacher_config)
            problems += problem is not None
            assert problem is None or problem.startswith(f"student.init: '{method}'")
            try:
                initialise(build_on_meta(config), teacher, method)
            except RcdeployError as error:
                assert problem, f"{name}, {method}: {error}"
            else:
                assert problem is None, f"{name}, {method}"
    assert problems > 3
    assert init_problem("random", STUDENTS["b-tiny"], teacher_config) is None
