"""The student's first weights, copied from the teacher or sliced out of it (paper section 4; KOALA: section H).

Besides random weights (build.build_student), which the paper takes for channel students, there are 'teacher', its
choice for block and KOALA students, and 'sliced', this project's alternative for students with fewer channels,
whatever blocks they lack. Which teacher tensor goes where is a rule on parameter names.

Why slicing keeps channels aligned
----------------------------------
A dimension of W_t teacher channels that shrinks to W_s keeps the channels floor(i W_t / W_s), i = 0 .. W_s-1, as they
are. This depends on (W_t, W_s) alone, so everything that reads or writes one residual stream keeps the same channels.
Let P divide both widths, and let the P parts be contiguous: norm groups, attention heads (q, k, v are heads x
head_dim), the halves [value; gate] of a GEGLU, [scale; shift], [cos; sin] of the time embedding. With w = W / P,
channel i = p w_s + r lies in part p and goes to floor((p w_s + r) w_t / w_s) = p w_t + floor(r w_t / w_s): part p
again, at the place that slicing each part by itself gives. So one rule serves all of them, and a student's group g,
head h or gate c holds channels of the teacher's group g, head h, or the gate of value c; spec's widths are multiples
of groups and heads for this reason.

One input is not a single stream: in up blocks each resnet reads [hidden; skip], whose parts may shrink by different
ratios after rounding. Its parts are sliced one by one. With equal ratios its norm groups stay aligned as above; with
unequal ratios a group there may straddle the two parts elsewhere than in the teacher.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel

from rcdeploy_runtime.errors import RcdeployError

from .wavelet import gating_names

InitMethod = Literal["teacher", "sliced"]

GUIDANCE_WEIGHT = "time_embedding.cond_proj.weight"
"""of a UNet with time_cond_proj_dim"""
_UP_LAYER = re.compile(r"up_blocks\.(?P<block>\d+)\.(?P<kind>resnets|attentions)\.(?P<layer>\d+)\.(?P<rest>.+)")
_UP_OTHER = re.compile(r"up_blocks\.(?P<block>\d+)\.(?P<rest>.+)")
# the tensors that read [hidden; skip], with the dimension along which they do
_READS_SKIP = {"norm1.weight": 0, "norm1.bias": 0, "conv1.weight": 1, "conv_shortcut.weight": 1}


def initialise(student: UNet2DConditionModel, teacher: UNet2DConditionModel, method: InitMethod) -> None:
    """Set every weight of the student, in place; wavelet gating that the teacher lacks keeps its random weights, and an
    embedding of guidance scales that it lacks begins at 0, where it changes nothing.

    Args:
        student: of any device and precision.
        teacher: the UNet that the student was made for.
        method: 'teacher' copies (students of the teacher's width), see teacher_name; 'sliced' takes every (teacher
            width / student width)-th channel, see this file's head.

    Raises:
        RcdeployError: the method is not for this student, or a tensor has no teacher tensor of a shape that fits; then
            no weight is changed.
    """
    if method == "teacher":
        _require_equal_widths(student, teacher)
        tensors = dict(_copied_tensors(student, teacher))
    else:
        _require_sliceable(student, teacher)
        tensors = dict(_sliced_tensors(student, teacher))
    with torch.no_grad():
        for name, target in student.state_dict().items():
            if name in tensors:
                target.copy_(tensors[name])
            elif name == GUIDANCE_WEIGHT:
                target.zero_()


def share_weights(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> None:
    """As initialise(student, teacher, "teacher"), with the teacher's own tensors: no further memory. Not for training.

    student: may be on the meta device.
    """
    _require_equal_widths(student, teacher)
    student.load_state_dict(dict(_copied_tensors(student, teacher)), assign=True)
    student.requires_grad_(False)


def teacher_name(name: str, student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> str:
    """The teacher's name of the student tensor `name`: the same, but for the up blocks (paper section 4, as in BK-SDM).

    Up blocks are counted from the innermost stage, which b-tiny lacks: its block i is the teacher's i + 1. And a
    block's last layer is the teacher's last, not the one of its index: it alone reads the skip from the stage above.
    """
    shift = len(teacher.up_blocks) - len(student.up_blocks)
    if layer := _UP_LAYER.fullmatch(name):
        block = int(layer["block"])
        index = int(layer["layer"])
        if index == len(student.up_blocks[block].resnets) - 1:
            index = len(teacher.up_blocks[block + shift].resnets) - 1
        return f"up_blocks.{block + shift}.{layer['kind']}.{index}.{layer['rest']}"
    if other := _UP_OTHER.fullmatch(name):
        return f"up_blocks.{int(other['block']) + shift}.{other['rest']}"
    return name


def slice_channels(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Channels floor(i W / size), i = 0 .. size-1, of the W along `dim`; size <= W."""
    width = tensor.shape[dim]
    channels = torch.arange(size, device=tensor.device) * width // size
    return tensor.index_select(dim, channels)


def _copied_tensors(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(student's name, teacher's tensor) for every student tensor that the teacher has, too."""
    source = teacher.state_dict()
    new = _new_names(student, teacher)
    for name, target in student.state_dict().items():
        if name in new:
            continue
        from_name = teacher_name(name, student, teacher)
        if from_name not in source:
            raise _mismatch(name, f"the teacher has no {from_name}")
        if source[from_name].shape != target.shape:
            shapes = f"{tuple(target.shape)}, the teacher's {from_name} is {tuple(source[from_name].shape)}"
            raise _mismatch(name, f"it is {shapes}")
        yield name, source[from_name]


def _new_names(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> set[str]:
    """The student's tensors that no teacher tensor is for."""
    guidance = {GUIDANCE_WEIGHT} - teacher.state_dict().keys()
    return guidance | (set() if gating_names(teacher) else gating_names(student))


def _sliced_tensors(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(student's name, slice of the teacher's tensor) for every student tensor that the teacher has, too."""
    source = teacher.state_dict()
    new = _new_names(student, teacher)
    for name, target in student.state_dict().items():
        if name in new:
            continue
        from_name = teacher_name(name, student, teacher)
        tensor = source[from_name]
        sizes_fit = tensor.ndim == target.ndim and all(s <= t for s, t in zip(target.shape, tensor.shape, strict=True))
        if not sizes_fit:
            raise _mismatch(name, f"{tuple(target.shape)} cannot be sliced out of the teacher's {tuple(tensor.shape)}")
        for dim, size in enumerate(target.shape):
            if dim != _skip_dim(name):
                tensor = slice_channels(tensor, dim, size)
                continue
            parts = _skip_parts(from_name, teacher)
            sizes = _skip_parts(name, student)
            if (sum(parts), sum(sizes)) != (tensor.shape[dim], size):
                raise _mismatch(name, f"its {size} inputs are not {sizes[0]} hidden and {sizes[1]} skip channels")
            tensor = _slice_parts(tensor, dim, parts, sizes)
        yield name, tensor


def _skip_dim(name: str) -> int | None:
    """The dimension of the tensor along which it reads [hidden; skip], if it does."""
    layer = _UP_LAYER.fullmatch(name)
    return _READS_SKIP.get(layer["rest"]) if layer and layer["kind"] == "resnets" else None


def _skip_parts(name: str, unet: UNet2DConditionModel) -> tuple[int, int]:
    """(hidden, skip): channels of the two inputs of the up-block resnet that `name` belongs to.

    The first resnet's hidden channels come from the block before, the last one's skip from the stage above; see
    diffusers' UNet2DConditionModel and UpBlock2D.
    """
    layer = _UP_LAYER.fullmatch(name)
    assert layer is not None
    block = int(layer["block"])
    index = int(layer["layer"])
    outward = list(reversed(unet.config.block_out_channels))
    own = outward[block]
    before = outward[max(block - 1, 0)]
    above = outward[min(block + 1, len(outward) - 1)]
    is_last = index == len(unet.up_blocks[block].resnets) - 1
    return (before if index == 0 else own), (above if is_last else own)


def _slice_parts(tensor: torch.Tensor, dim: int, parts: tuple[int, int], sizes: tuple[int, int]) -> torch.Tensor:
    """Slice each of two consecutive parts along `dim`: from `parts` channels to `sizes` channels."""
    pieces = tensor.split(list(parts), dim)
    return torch.cat([slice_channels(piece, dim, size) for piece, size in zip(pieces, sizes, strict=True)], dim)


def _mismatch(name: str, reason: str) -> RcdeployError:
    return RcdeployError(
        f"the student's {name} cannot be taken from the teacher: {reason}",
        fix="Use the teacher that this student was made for, or set student.init = 'random'.",
    )


def _widths(unet: UNet2DConditionModel) -> list[int]:
    return list(unet.config.block_out_channels)


def _require_equal_widths(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> None:
    widths = _widths(student)
    teacher_widths = _widths(teacher)
    if widths != teacher_widths[: len(widths)]:
        raise RcdeployError(
            f"a student of width {widths} cannot copy the weights of a teacher of width {teacher_widths}",
            fix="For students with fewer channels set student.init to 'random' or 'sliced'.",
        )


def _require_sliceable(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> None:
    """Raises RcdeployError unless the teacher has every layer of the student, with the same heads and norm groups."""
    own, source = student.state_dict(), teacher.state_dict()
    names = {name: teacher_name(name, student, teacher) for name in own.keys() - _new_names(student, teacher)}
    missing = {source_name for source_name in names.values() if source_name not in source}
    # a resnet has a shortcut convolution only where its widths differ: the teacher's may, where the student's do not
    for name, source_name in names.items():
        if name.endswith(".norm1.weight"):
            shortcut, source_shortcut = (n.replace("norm1", "conv_shortcut") for n in (name, source_name))
            if shortcut not in own and source_shortcut in source:
                missing.add(source_shortcut)
    widths, stages = _widths(teacher), len(_widths(student))
    if missing or len(set(widths[stages - 1 : stages + 1])) > 1 and stages < len(widths):
        example = min(missing) if missing else "the innermost up block reads another width"
        raise RcdeployError(
            f"the student has not the layers of the teacher (for example {example}), so it cannot be sliced",
            fix="Set student.init = 'random', or another width.",
        )
    for key in ("attention_head_dim", "num_attention_heads", "norm_num_groups"):
        value = _as_list(student.config.get(key))
        teacher_value = _as_list(teacher.config.get(key))
        if isinstance(value, list) and isinstance(teacher_value, list):
            teacher_value = teacher_value[: len(value)]
        if value != teacher_value:
            raise RcdeployError(
                f"the student's {key} is {value}, the teacher's {teacher_value}: a slice would mix heads or groups",
                fix="Keep the teacher's heads and groups, or set student.init = 'random'.",
            )


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
