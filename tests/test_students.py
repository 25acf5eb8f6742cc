"""The rules that make a student of a teacher, and building one from a seed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from toy_unets import TOY, TOY_XL, Config, run_unet, same_weights, student_of

from rcdeploy.student.build import build_student
from rcdeploy.student.sd14 import SD14_UNET_CONFIG
from rcdeploy.student.spec import (
    STUDENTS,
    StudentSpec,
    describe_removed,
    find_student,
    fitting_students,
    student_config,
)
from rcdeploy_runtime.errors import RcdeployError

torch.set_num_threads(1)

# --- rules over the teacher's config ---------------------------------------------------------------------------------


def test_b_tiny_of_sd14_is_bk_sdm_tiny() -> None:
    config, notes = student_config("b-tiny", SD14_UNET_CONFIG)
    assert config["block_out_channels"] == [320, 640, 1280]
    assert config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3
    assert config["up_block_types"] == ["CrossAttnUpBlock2D"] * 3
    assert config["mid_block_type"] is None and config["layers_per_block"] == 1 and config["attention_head_dim"] == 8
    assert notes == []


def test_innermost_stage_leaves_every_list_at_the_right_end() -> None:
    teacher = SD14_UNET_CONFIG | {
        "attention_head_dim": (5, 10, 20, 40),
        "layers_per_block": [2, 2, 2, 3],
        "only_cross_attention": [True, False, False, True],
        "transformer_layers_per_block": [1, 2, 3, 4],
        "reverse_transformer_layers_per_block": [4, 30, 2, 1],
        "cross_attention_dim": [768, 768, 768, 1024],
    }
    config, _ = student_config("b-tiny", teacher)
    assert config["attention_head_dim"] == [5, 10, 20]
    assert config["layers_per_block"] == [1, 1, 1]
    assert config["only_cross_attention"] == [True, False, False]
    assert config["transformer_layers_per_block"] == [1, 2, 3]
    assert config["reverse_transformer_layers_per_block"] == [30, 2, 1]
    assert config["cross_attention_dim"] == [768, 768, 768]


def test_stages_keep_layers_of_their_own_number() -> None:
    spec = StudentSpec(layers=(2, 1, 1, 2), drop_mid_block=True)
    config, notes = student_config(spec, SD14_UNET_CONFIG)
    assert config["layers_per_block"] == [2, 1, 1, 2] and config["mid_block_type"] is None and notes == []
    assert describe_removed(spec, SD14_UNET_CONFIG) == "layers per block 2/2/2/2 -> 2/1/1/2, mid block"
    assert spec.family == "block"
    for name, rule in (("b-base", StudentSpec(layers=(1, 1, 1, 1))), ("b-small", replace(spec, layers=(1, 1, 1, 1)))):
        assert student_config(rule, SD14_UNET_CONFIG) == student_config(name, SD14_UNET_CONFIG)
    tiny = StudentSpec(layers=(1, 2, 1), drop_mid_block=True, drop_innermost_stage=True)
    assert student_config(tiny, SD14_UNET_CONFIG)[0]["layers_per_block"] == [1, 2, 1]
    assert describe_removed(tiny, SD14_UNET_CONFIG).startswith("layers per block 2/2/2/2 -> 1/2/1, mid block, inner")
    # entries a layer: of down blocks the first, of up blocks the first and the last
    nested = TOY_XL | {
        "layers_per_block": [2, 2, 3],
        "transformer_layers_per_block": [1, [2, 3], [4, 5, 6]],
        "reverse_transformer_layers_per_block": [[7, 8, 9, 10], [11, 12, 13], 1],
    }
    config, _ = student_config(StudentSpec(layers=(2, 1, 2)), nested)
    assert config["transformer_layers_per_block"] == [1, [2], [4, 5]]
    assert config["reverse_transformer_layers_per_block"] == [[7, 8, 10], [11, 13], 1]


def test_layers_that_do_not_fit() -> None:
    for layers, changes, message in (
        ((2, 1, 1), {}, "layers 2/1/1 are for 3 stages, and 4 are left"),
        ((2, 1, 1, 2), {"drop_mid_block": True, "drop_innermost_stage": True}, "for 4 stages, and 3 are left"),
        ((2, 3, 1, 1), {}, "it has 2/2/2/2 layers a block, the student needs 2/3/1/1"),
        ((2, 2, 2, 2), {}, "nothing would be removed"),
    ):
        with pytest.raises(RcdeployError, match=message):
            student_config(StudentSpec(layers=layers, **changes), TOY)
    student_config(StudentSpec(layers=(2, 2, 2, 2), drop_mid_block=True), TOY)
    for wrong, message in (
        ({"layers": ()}, "out of range"),
        ({"layers": (1, 0)}, "out of range"),
        ({"layers": (1, 1), "single_layer": True}, "contradict"),
        ({"layers": (1, 1, 1), "transformer_layers": (1, 1, 1)}, "contradict"),
    ):
        with pytest.raises(RcdeployError, match=message):
            StudentSpec(**wrong)


def test_the_teachers_config_is_left_alone_and_origins_are_dropped() -> None:
    teacher = {**SD14_UNET_CONFIG, "_name_or_path": "somewhere", "_diffusers_version": "0.2.2"}
    config, _ = student_config("b-base", teacher)
    assert not any(key.startswith("_") for key in config)
    config["down_block_types"].append("spoilt")
    assert len(teacher["down_block_types"]) == 4 and teacher["layers_per_block"] == 2


@pytest.mark.parametrize(
    "name, widths",
    [
        ("c-base", [32, 32, 64, 64]),
        ("c-small", [28, 28, 56, 56]),
        ("c-tiny", [24, 24, 48, 48]),
        ("c-micro", [20, 20, 40, 40]),
    ],
)
def test_channel_students_of_a_toy_need_no_rounding(name: str, widths: list[int]) -> None:
    config, notes = student_config(name, TOY)
    assert config["block_out_channels"] == widths and notes == []
    assert config["attention_head_dim"] == 4 and config["norm_num_groups"] == 4


def test_rounding_is_to_groups_and_heads_and_is_noted() -> None:
    config, notes = student_config(StudentSpec(width=0.55), TOY)
    assert config["block_out_channels"] == [24, 24, 44, 44]
    assert notes[0] == "block 0: 22 rounded to 24: must be divisible by 4 groups and 4 heads"
    assert len(notes) == 2  # 0.55 x 80 is 44 as it stands


def test_heads_differ_by_stage_and_count_only_where_there_is_attention() -> None:
    sd2 = SD14_UNET_CONFIG | {"attention_head_dim": [5, 10, 20, 20]}
    config, notes = student_config("c-small", sd2)
    assert config["block_out_channels"] == [160, 480, 960, 960]
    assert notes[1] == "block 1: 448 rounded to 480: must be divisible by 32 groups and 10 heads"
    without = sd2 | {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4}
    config, notes = student_config("c-small", without)
    assert config["block_out_channels"] == [224, 448, 896, 960]  # the mid block still has 20 heads
    assert len(notes) == 1


def test_a_width_is_at_least_one_multiple() -> None:
    config, _ = student_config(StudentSpec(width=0.01), TOY)
    assert config["block_out_channels"] == [4, 4, 4, 4]


def test_koala_shortens_transformers() -> None:
    config, _ = student_config("koala-700m", TOY_XL)
    assert config["transformer_layers_per_block"] == [1, 2, 5] and config["mid_block_type"] is None
    config, _ = student_config("koala-1b", TOY_XL)
    assert config["transformer_layers_per_block"] == [1, 2, 6] and config["mid_block_type"] is not None
    assert describe_removed("koala-700m", TOY_XL) == (
        "1 of 2 layers per block, transformer layers 1/2/10 -> 1/2/5, mid block"
    )


def test_b_tiny_notes_that_the_teachers_weights_do_not_fit() -> None:
    _, notes = student_config("b-tiny", TOY_XL)
    assert "differ in width (16 and 32)" in notes[0]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("b-base", {"layers_per_block": 1}, "one layer each already"),
        ("b-small", {"mid_block_type": None}, "no mid block"),
        (
            "b-tiny",
            {
                "block_out_channels": [40, 40],
                "down_block_types": ["CrossAttnDownBlock2D"] * 2,
                "up_block_types": ["CrossAttnUpBlock2D"] * 2,
            },
            "it has 2 stages",
        ),
        ("koala-1b", {}, "SDXL"),
        ("c-base", {"block_out_channels": [4, 4, 4, 4]}, "nothing would be removed"),
        ("b-base", {"block_out_channels": [40, 40]}, "config is broken"),
    ],
)
def test_a_rule_that_does_not_fit_says_why_and_which_do(name: str, changes: Config, message: str) -> None:
    with pytest.raises(RcdeployError, match=message) as caught:
        student_config(name, TOY | changes)
    assert name in caught.value.message
    fits = fitting_students(TOY | changes)
    assert name not in fits
    assert all(other in (caught.value.fix or "") for other in fits)


def test_koala_needs_long_enough_transformers() -> None:
    with pytest.raises(RcdeployError, match="1/2/4 transformer layers"):
        student_config("koala-700m", TOY_XL | {"transformer_layers_per_block": [1, 2, 4]})
    with pytest.raises(RcdeployError, match="for each stage"):
        student_config("koala-700m", TOY_XL | {"transformer_layers_per_block": 10})


def test_other_denoisers_are_named() -> None:
    with pytest.raises(RcdeployError, match="SD3Transformer2DModel") as caught:
        student_config("b-base", {"_class_name": "SD3Transformer2DModel"})
    assert caught.value.fix == "No student fits this teacher."


def test_names_and_specs_are_checked() -> None:
    with pytest.raises(RcdeployError, match="b-small"):
        find_student("b_small")
    for width in (0.0, 1.2, -1.0):
        with pytest.raises(RcdeployError, match="out of range"):
            StudentSpec(width=width)
    with pytest.raises(RcdeployError, match="removes nothing"):
        StudentSpec()
    assert {name: spec.family for name, spec in STUDENTS.items() if name[-1] in "ym"} == {
        "b-tiny": "block",
        "c-tiny": "channel",
        "koala-700m": "koala",
    }


def test_specs_load_no_torch() -> None:
    code = "import sys, rcdeploy.student.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- building ---------------------------------------------------------------------------------------------------------


def test_building_depends_on_the_seed_alone_and_leaves_the_global_state() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_student(student_of("c-micro"), seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_weights(first, build_student(student_of("c-micro") | {"_class_name": "UNet2DConditionModel"}, seed=7))
    assert not same_weights(first, build_student(student_of("c-micro"), seed=8))


def test_a_config_that_diffusers_refuses_is_a_user_error() -> None:
    with pytest.raises(RcdeployError, match="cannot build"):
        build_student(TOY | {"down_block_types": ["NoSuchBlock"] * 4}, seed=0)


@pytest.mark.parametrize("name", ["b-base", "b-small", "b-tiny", "c-base", "c-micro"])
def test_toy_students_run(name: str) -> None:
    assert run_unet(build_student(student_of(name), seed=0)).shape == (2, 4, 8, 8)
