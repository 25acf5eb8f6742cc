"""Feature taps: which modules of student and teacher are compared, and hooks that record their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..student.rules import layers_of


@dataclass(frozen=True)
class FeatureTap:
    """The names of two modules that are compared, and the channels of their outputs."""

    teacher: str
    student: str
    teacher_channels: int
    student_channels: int

    @property
    def needs_projector(self) -> bool:
        """Whether the student's features are projected to the teacher's channels."""
        return self.student_channels != self.teacher_channels


def feature_taps(teacher_config: dict[str, Any], student_config: dict[str, Any]) -> list[FeatureTap]:
    """The paper's taps (supplement C): the output of each UNet block.

    Block students: all down and up blocks. Where the innermost stage is removed (b-tiny), the last down block of the
    student has no downsampler, so its attention is compared with the teacher's last attention there, and its up blocks
    with the teacher's shifted by one. Channel students: down blocks, mid block, up blocks.

    KOALA students: see koala_taps.

    Args:
        teacher_config, student_config: UNet2DConditionModel configs; the student's is made of the teacher's.
    """
    depths, student_depths = (c.get("transformer_layers_per_block", 1) for c in (teacher_config, student_config))
    whole_numbers = isinstance(student_depths, list) and all(isinstance(depth, int) for depth in student_depths)
    # lists in the list, as SSD-1B has them, follow the layers; without a stage, what is left may be the teacher's
    if whole_numbers and student_depths != list(depths)[: len(student_depths)]:
        return koala_taps(teacher_config, student_config)
    teacher_channels = teacher_config["block_out_channels"]
    student_channels = student_config["block_out_channels"]
    layers, teacher_layers = layers_of(student_config), layers_of(teacher_config)
    stages = len(student_channels)
    removed_stages = len(teacher_channels) - stages
    taps = [
        FeatureTap(f"down_blocks.{i}", f"down_blocks.{i}", teacher_channels[i], student_channels[i])
        for i in range(stages)
    ]
    if removed_stages:
        last = stages - 1
        taps[last] = FeatureTap(
            f"down_blocks.{last}.attentions.{teacher_layers[last] - 1}",
            f"down_blocks.{last}.attentions.{layers[last] - 1}",
            teacher_channels[last],
            student_channels[last],
        )
    if layers == teacher_layers and not removed_stages and student_config.get("mid_block_type", "") is not None:
        taps.append(FeatureTap("mid_block", "mid_block", teacher_channels[-1], student_channels[-1]))
    for i in range(stages):
        taps.append(
            FeatureTap(
                f"up_blocks.{i + removed_stages}",
                f"up_blocks.{i}",
                teacher_channels[::-1][i + removed_stages],
                student_channels[::-1][i],
            )
        )
    return taps


def koala_taps(teacher_config: dict[str, Any], student_config: dict[str, Any]) -> list[FeatureTap]:
    """KOALA's taps as the authors have them: every self-attention that the student kept, and a convolution of each
    stage that has none.

    The student's only layer of a down block is the teacher's first; of the two of an up block the second is the
    teacher's last. Of its transformer layers the first ones were kept.
    """
    widths, teacher_widths = student_config["block_out_channels"], teacher_config["block_out_channels"]
    layers = student_config["transformer_layers_per_block"]
    last = teacher_config["layers_per_block"]
    taps = []

    def tap(teacher: str, student: str, stage: int) -> None:
        taps.append(FeatureTap(teacher, student, teacher_widths[stage], widths[stage]))

    def attentions(teacher: str, student: str, stage: int) -> None:
        for i in range(layers[stage]):
            part = f"transformer_blocks.{i}.attn1"
            tap(f"{teacher}.{part}", f"{student}.{part}", stage)

    for i, kind in enumerate(student_config["down_block_types"]):
        if "CrossAttn" in kind:
            attentions(f"down_blocks.{i}.attentions.0", f"down_blocks.{i}.attentions.0", i)
        else:
            tap(f"down_blocks.{i}.downsamplers.0.conv", f"down_blocks.{i}.downsamplers.0.conv", i)
    if student_config.get("mid_block_type", "") is not None:
        attentions("mid_block.attentions.0", "mid_block.attentions.0", -1)
    for i, kind in enumerate(student_config["up_block_types"]):
        stage = len(widths) - 1 - i
        if "CrossAttn" in kind:
            attentions(f"up_blocks.{i}.attentions.0", f"up_blocks.{i}.attentions.0", stage)
            attentions(f"up_blocks.{i}.attentions.{last}", f"up_blocks.{i}.attentions.1", stage)
        else:
            tap(f"up_blocks.{i}.resnets.{last}.conv2", f"up_blocks.{i}.resnets.1.conv2", stage)
    return taps


class FeatureRecorder:
    """Forward hooks that record the outputs of the named modules inside `recording()`.

    Outside of it nothing is recorded: a checkpointed block that runs again in the backward pass leaves no trace.
    """

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        self.names = names
        self._features: dict[str, Tensor] = {}
        self._enabled = False
        self._first_call = False
        for name in names:
            module.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._enabled and not (self._first_call and name in self._features):
                self._features[name] = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)

        return record

    @contextmanager
    def recording(self, *, first_call: bool = False) -> Iterator[list[Tensor]]:
        """Yields a list that holds the features, in the order of the names, once the block has ended.

        first_call: those of the module's first call inside the block; by default those of the last.
        """
        features: list[Tensor] = []
        self._first_call = first_call
        self._enabled = True
        try:
            yield features
            features += [self._features[name] for name in self.names]
        finally:
            self._enabled = False
            self._features.clear()
