"""The students: which parts of a teacher's UNet each one lacks (paper section 4 and Table A; KOALA: paper section H).

A student is a rule over the *teacher's* UNet2DConditionModel config, not a list of numbers, so it holds for SD-1.x,
SD-2.x, SDXL and toy teachers alike. Nothing here imports torch: recipes are checked, and help is printed, without it.

    block students   b-base, b-small, b-tiny    lack whole layers, the mid block, the innermost stage (BK-SDM's rule)
    channel students c-base ... c-micro         have every layer, with fewer channels
    KOALA            koala-700m, koala-1b       lack layers and transformer layers of an SDXL teacher
    SLIM             slim-b-base                b-base with wavelet gating in place of down- and upsamplers (section I)

A width narrows any of them, and stages may keep layers of their own number (neither is in the paper): StudentSpec of
b-tiny with width = 0.7 lacks blocks and channels, with layers = (2, 1, 1) the outermost stage is whole.

diffusers calls the *number* of heads attention_head_dim (its issue 2011); here it is read as the head count.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.sampling_defaults import EMBEDDING_WIDTH

from .rules import (
    Config,
    Misfit,
    drop_innermost_stage,
    drop_mid_block,
    gate_wavelets,
    keep_layers,
    keep_single_layer,
    layers_of,
    narrow,
    shorten_transformers,
    slashed,
)
from .sd14 import SD14_UNET_CONFIG

# diffusers' own defaults for the keys that the rules read and a config may leave out
_DEFAULTS: Config = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": SD14_UNET_CONFIG["down_block_types"],
    "up_block_types": SD14_UNET_CONFIG["up_block_types"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}


@dataclass(frozen=True)
class StudentSpec:
    """A rule that makes a student of a teacher; the fields may be combined, as in StudentSpec(width=0.55).

    Attributes:
        width: factor in (0, 1] on every stage's channels.
        single_layer: layers_per_block becomes 1.
        layers: layers per block of each stage that the student has, outermost first; instead of single_layer.
        drop_mid_block, drop_innermost_stage: without these parts.
        transformer_layers: of each stage, outermost first (KOALA; needs an SDXL teacher).
        wavelet_gating: dynamic wavelet gating in place of every down- and upsampler (SLIM).
        guidance_embedding: takes the guidance scale as a further input.

    Raises:
        RcdeployError: the width or a number of layers is out of range, two fields contradict each other, or nothing at
            all is removed.
    """

    width: float = 1.0
    single_layer: bool = False
    layers: tuple[int, ...] | None = None
    drop_mid_block: bool = False
    drop_innermost_stage: bool = False
    transformer_layers: tuple[int, ...] | None = None
    wavelet_gating: bool = False
    guidance_embedding: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise RcdeployError(
                f"student width {self.width:g} is out of range", fix="Give a factor above 0 and below 1, such as 0.7."
            )
        if self.layers is not None and (not self.layers or min(self.layers) < 1):
            raise RcdeployError(
                f"student layers {list(self.layers)} are out of range",
                fix="Give 1 or more for each stage: [2, 1, 1, 2].",
            )
        if self.layers is not None and (self.single_layer or self.transformer_layers):
            raise RcdeployError(
                "layers for each stage contradict single_layer, and transformer_layers (KOALA) come with single_layer",
                fix="Give layers, beside drop_mid_block and drop_innermost_stage where those go too.",
            )
        if self.width == 1 and not self._removes_blocks and self.transformer_layers is None:
            raise RcdeployError(
                "this student removes nothing from its teacher", fix="Give a width below 1, or name layers to remove."
            )

    @property
    def family(self) -> Literal["block", "channel", "koala"]:
        """'koala' with fewer transformer layers, else 'block' without whole layers or blocks, else 'channel'."""
        return "koala" if self.transformer_layers else "block" if self._removes_blocks else "channel"

    @property
    def _removes_blocks(self) -> bool:
        return self.single_layer or self.layers is not None or self.drop_mid_block or self.drop_innermost_stage


STUDENTS: dict[str, StudentSpec] = {
    "b-base": StudentSpec(single_layer=True),
    "b-small": StudentSpec(single_layer=True, drop_mid_block=True),
    "b-tiny": StudentSpec(single_layer=True, drop_mid_block=True, drop_innermost_stage=True),
    "slim-b-base": StudentSpec(single_layer=True, wavelet_gating=True),
    "c-base": StudentSpec(width=0.8),
    "c-small": StudentSpec(width=0.7),
    "c-tiny": StudentSpec(width=0.6),
    "c-micro": StudentSpec(width=0.5),
    "koala-700m": StudentSpec(single_layer=True, drop_mid_block=True, transformer_layers=(1, 2, 5)),
    "koala-1b": StudentSpec(single_layer=True, transformer_layers=(1, 2, 6)),
}


def find_student(name: str) -> StudentSpec:
    """The student of that name; RcdeployError with the nearest right name if there is none."""
    if name in STUDENTS:
        return STUDENTS[name]
    near = difflib.get_close_matches(name.lower(), STUDENTS, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise RcdeployError(f"there is no student named '{name}'", fix=f"{hint}Students: {', '.join(STUDENTS)}.")


def student_config(spec_or_name: StudentSpec | str, teacher_config: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The student's UNet2DConditionModel config, and notes for a person on where it deviates from the rule.

    Args:
        spec_or_name: the rule, or the name of one of STUDENTS.
        teacher_config: the teacher's UNet config (unet/config.json, or unet.config). Its keys with a leading underscore
            (class, version, folder) do not hold for the student and are dropped; tuples become lists.

    Raises:
        RcdeployError: the rule does not fit this teacher, with the reason and the students that do fit.
    """
    spec = find_student(spec_or_name) if isinstance(spec_or_name, str) else spec_or_name
    try:
        return _apply(spec, teacher_config)
    except Misfit as misfit:
        name = next((name for name, known in STUDENTS.items() if known == spec), None)
        label = f"student {name}" if name else "this student"
        fits = fitting_students(teacher_config)
        fix = f"Students that fit this teacher: {', '.join(fits)}." if fits else "No student fits this teacher."
        raise RcdeployError(f"{label} does not fit the teacher: {misfit}", fix=fix) from None


def fitting_students(teacher_config: Mapping[str, Any]) -> list[str]:
    """Names of the students that fit this teacher."""
    return [name for name, spec in STUDENTS.items() if _fits(spec, teacher_config)]


def _fits(spec: StudentSpec, teacher_config: Mapping[str, Any]) -> bool:
    try:
        _apply(spec, teacher_config)
    except Misfit:
        return False
    return True


def describe_removed(spec_or_name: StudentSpec | str, teacher_config: Mapping[str, Any]) -> str:
    """What the student lacks, as a short text; raises RcdeployError as student_config does."""
    spec = find_student(spec_or_name) if isinstance(spec_or_name, str) else spec_or_name
    config, _ = student_config(spec_or_name, teacher_config)
    teacher = _read(teacher_config)
    removed = []
    if spec.single_layer:
        layers = teacher["layers_per_block"]
        removed.append(
            f"{layers - 1} of {layers} layers per block" if isinstance(layers, int) else "all but 1 layer per block"
        )
    if spec.layers is not None:
        old, new = (slashed(layers_of(side)) for side in (teacher, config))
        removed += [f"layers per block {old} -> {new}"] if old != new else []
    if spec.transformer_layers is not None:
        old, new = slashed(teacher["transformer_layers_per_block"]), slashed(spec.transformer_layers)
        removed.append(f"transformer layers {old} -> {new}")
    if spec.drop_mid_block:
        removed.append("mid block")
    if spec.drop_innermost_stage:
        removed.append("innermost stage")
    if spec.width < 1:
        old, new = (slashed(side["block_out_channels"]) for side in (teacher, config))
        removed.append(f"width x {spec.width:g}: {old} -> {new}")
    if spec.wavelet_gating:
        removed.append("down- and upsamplers (wavelet gating instead)")
    return ", ".join(removed)


def _read(teacher_config: Mapping[str, Any]) -> Config:
    """A copy of the teacher's config with diffusers' defaults, tuples as lists; Misfit if it is no such UNet."""
    class_name = teacher_config.get("_class_name", "UNet2DConditionModel")
    if class_name != "UNet2DConditionModel":
        raise Misfit(f"its denoiser is a {class_name}; the rules are for UNet2DConditionModel.")
    config = _DEFAULTS | {key: value for key, value in teacher_config.items() if not key.startswith("_")}
    config = {key: list(value) if isinstance(value, list | tuple) else value for key, value in config.items()}
    stages = len(config["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        if len(config[key]) != stages:
            raise Misfit(f"its config is broken: {stages} block_out_channels, {len(config[key])} {key}.")
    return config


def _apply(spec: StudentSpec, teacher_config: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The rules, one after another; raises Misfit."""
    teacher, config = _read(teacher_config), _read(teacher_config)
    notes: list[str] = []
    if config.get("time_cond_proj_dim"):
        raise Misfit("its UNet takes the guidance scale as an input: it has been distilled already.")
    # KOALA first: it checks which teacher this is, and the other rules change that
    if spec.transformer_layers is not None:
        shorten_transformers(config, spec.transformer_layers)
    if spec.single_layer:
        keep_single_layer(config)
    if spec.drop_mid_block:
        drop_mid_block(config)
    if spec.drop_innermost_stage:
        drop_innermost_stage(config, notes)
    if spec.layers is not None:
        keep_layers(config, spec.layers)
    if spec.width < 1:
        narrow(config, spec.width, notes)
    if spec.wavelet_gating:
        gate_wavelets(config)
    if config == teacher:
        raise Misfit("these are its own layers, nothing would be removed.")
    if spec.guidance_embedding:
        config["time_cond_proj_dim"] = EMBEDDING_WIDTH
    return config, notes
