"""The diagram of a student's UNet beside its teacher's: its layers are those that diffusers builds."""

from __future__ import annotations

import re
from typing import Any

import pytest
from toy_unets import TOY, TOY_XL

from rcdeploy.report.unet_diagram import Layer, diagram, layers
from rcdeploy.student.build import build_on_meta
from rcdeploy.student.sd14 import SD14_UNET_CONFIG
from rcdeploy.student.spec import student_config


def modules(config: dict[str, Any]) -> list[tuple[str, str, int, int]]:
    """(side, kind, channels, depth) of every layer of a UNet, in the order of its modules, as diffusers builds it."""
    result = []
    for name, module in build_on_meta(config).named_modules():
        side = name.split("_")[0]
        kind = {"ResnetBlock2D": "resnet", "Transformer2DModel": "attention"}.get(type(module).__name__)
        if kind:
            depth = len(module.transformer_blocks) if kind == "attention" else 1
            width = module.out_channels if kind == "resnet" else module.norm.num_channels
            result.append((side, kind, width, depth))
        elif type(module).__name__ in ("Downsample2D", "Upsample2D"):
            result.append((side, "sampler", module.out_channels, 1))
    return sorted(result)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        *((config, name) for config in (SD14_UNET_CONFIG, TOY) for name in ("b-base", "b-small", "b-tiny", "c-micro")),
        (TOY_XL, "koala-700m"),
        (TOY_XL, "koala-1b"),
    ],
)
def test_boxes_are_the_layers_that_diffusers_builds(teacher: dict[str, Any], student: str) -> None:
    config, _ = student_config(student, teacher)
    every = layers(teacher, config)
    assert sorted((x.side, x.kind, x.channels, x.depth) for x in every) == modules(teacher)
    remaining = [x for x in every if x.student_channels is not None]
    assert sorted((x.side, x.kind, x.student_channels, x.student_depth) for x in remaining) == modules(config)


def test_remaining_layers_are_those_whose_weights_are_copied() -> None:
    """Of a down block the first, of an up block the first and the last, and none of the innermost stage."""
    config, _ = student_config("b-tiny", SD14_UNET_CONFIG)
    every = layers(SD14_UNET_CONFIG, config)

    def remaining(side: str, stage: int, kind: str = "resnet") -> list[int]:
        return [
            x.index
            for x in every
            if (x.side, x.stage, x.kind) == (side, stage, kind) and x.student_channels is not None
        ]

    assert [remaining("down", s) for s in range(4)] == [[0], [0], [0], []]
    assert [remaining("up", s) for s in range(4)] == [[0, 2], [0, 2], [0, 2], []]
    assert [remaining("down", s, "sampler") for s in range(3)] == [[0], [0], []]
    assert [remaining("up", s, "sampler") for s in range(1, 4)] == [[0], [0], []]
    assert Layer("mid", 3, "attention", 0, 1280, None) in every


def test_boxes_are_as_high_as_their_channels() -> None:
    config, _ = student_config("c-micro", TOY)
    svg = diagram(TOY, config)
    heights = {kind: re.findall(rf'class="{kind}"[^>]* height="([0-9.]+)"', svg) for kind in ("resnet", "was")}
    assert set(heights["resnet"]) == {"10.5", "21.0"}, "half of 21 and of 42"
    assert set(heights["was"]) == {"20.0", "41.0"}, "the teacher's, less the width of the dashed line"
    assert "40 → 20" in svg
    assert 'class="was"' not in diagram(TOY, TOY)


def test_wavelet_gating_is_named() -> None:
    config, _ = student_config("slim-b-base", TOY)
    samplers = [x for x in layers(TOY, config) if x.kind == "sampler"]
    assert len(samplers) == 6 and all(x.title.endswith("; wavelet gating in the student") for x in samplers)
    assert "wavelet gating in the student" in diagram(TOY, config)
