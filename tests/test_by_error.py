"""Students by the one-layer-out error: the parts, their errors, combinations, the choice, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PAIRED, save_teacher
from typer.testing import CliRunner, Result

from rcdeploy.bench import by_error, layer_error
from rcdeploy.bench.budget import Budget, Candidate, choose
from rcdeploy.bench.by_error import combinations, front, worth_timing
from rcdeploy.bench.layer_error import Part, Prediction, measured, relative_error, removable_parts
from rcdeploy.bench.macs import parameters, unet_macs
from rcdeploy.cli.main import app
from rcdeploy.condition import predict
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.progress import no_progress
from rcdeploy.recipe_file import load_recipe
from rcdeploy.student.build import build_on_meta, build_student
from rcdeploy.student.init import initialise
from rcdeploy.student.spec import student_config
from rcdeploy_runtime.errors import RcdeployError

TEXT_LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of three stages with 3, 1 and 2 layers, and captions beside it."""
    teacher = save_teacher(
        tmp_path_factory.mktemp("layers") / "teacher",
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 8, 8),
        layers_per_block=(3, 1, 2),
    )
    (teacher / "captions.txt").write_text("\n".join(PAIRED))
    return teacher


@pytest.fixture(scope="module")
def teacher(folder: Path) -> LatentDiffusionModel:
    return LatentDiffusionModel(str(folder))


@pytest.fixture(scope="module")
def whole(teacher: LatentDiffusionModel) -> Candidate:
    return layer_error.counted_teacher(teacher.unet_config, None, TEXT_LENGTH)


@pytest.fixture(scope="module")
def predictions(folder: Path, teacher: LatentDiffusionModel) -> list[Prediction]:
    return layer_error.teacher_predictions(teacher, layer_error.captions(folder, None, 3), None, no_progress)


@pytest.fixture(scope="module")
def parts(whole: Candidate, teacher: LatentDiffusionModel, predictions: list[Prediction]) -> list[Part]:
    return measured(removable_parts(whole, None, TEXT_LENGTH), teacher, predictions, no_progress)


def test_predictions_are_the_teachers_on_its_way_to_images(
    teacher: LatentDiffusionModel, predictions: list[Prediction]
) -> None:
    assert [int(known.timestep) for known in predictions] == [901, 701, 501, 301, 101]
    first, second = predictions[:2]
    assert first.noisy_latents.shape == (3, 4, 8, 8) and first.noisy_latents.std() == pytest.approx(1, abs=0.1)
    assert not torch.equal(first.noisy_latents, second.noisy_latents)
    for known in predictions:
        output = predict(teacher.unet, known.noisy_latents, known.timestep.expand(3), known.condition)
        assert torch.allclose(output, known.output, atol=1e-6)


def test_parts_are_removed_alone(
    whole: Candidate, teacher: LatentDiffusionModel, parts: list[Part], predictions: list[Prediction]
) -> None:
    assert [part.key for part in parts] == [(0, 2), (0, 1), (2, 1), "b-small", "b-tiny"]
    assert [part.name for part in parts[:2]] == ["stage 0: 1 of 3 layers", "stage 0: 2 of 3 layers"]
    assert [part.config["layers_per_block"] for part in parts] == [[2, 1, 2], [1, 1, 2], [3, 1, 1], [3, 1, 2], [3, 1]]
    assert [part.config["mid_block_type"] is None for part in parts] == [False, False, False, True, True]
    assert all(0 < part.error < math.inf and part.parameters > 0 and part.macs > 0 for part in parts)
    assert relative_error(teacher, whole.config, predictions) == 0
    # the same by a student that has weights of its own
    student = build_student(parts[1].config, 0)
    initialise(student, teacher.unet, "teacher")
    with torch.no_grad():
        outputs = [predict(student, p.noisy_latents, p.timestep.expand(3), p.condition) for p in predictions]
    difference = sum(float((a - p.output).square().sum()) for a, p in zip(outputs, predictions, strict=True))
    assert parts[1].error == pytest.approx(
        difference / sum(float(p.output.square().sum()) for p in predictions), rel=1e-4
    )


def test_combinations_are_sums(whole: Candidate, parts: list[Part]) -> None:
    found = combinations(whole, parts)
    assert len(found) == 3 * 2 * 2 - 1 + 3 and len({c.name for c in found}) == len(found)
    assert [c.error for c in found] == sorted(c.error for c in found)
    by_name = {c.name: c for c in found}
    errors = {part.key: part.error for part in parts}
    assert by_name["b-base of layers 3/1/1"].error == errors[(2, 1)]
    assert by_name["b-small of layers 2/1/1"].error == pytest.approx(
        errors[(0, 2)] + errors[(2, 1)] + errors["b-small"]
    )
    tiny = by_name["b-tiny of layers 2/1"]  # what goes with the stage is not counted twice
    assert tiny.error == pytest.approx(errors[(0, 2)] + errors["b-tiny"])
    assert tiny.settings == ("student.name=b-tiny", "student.layers=[2, 1]")
    assert by_name["b-tiny"].settings == ("student.name=b-tiny",) and "b-base" in by_name
    for candidate in (tiny, by_name["b-small of layers 1/1/2"], by_name["b-tiny"], found[-1]):
        unet = build_on_meta(candidate.config)
        assert candidate.parameters == parameters(unet)
        assert candidate.macs == unet_macs(unet, None, TEXT_LENGTH).total
    # of a part that was not measured, such as one whose weights do not fit, there is no combination
    assert len(combinations(whole, [part for part in parts if part.key not in ("b-tiny", (0, 2))])) == 2 * 2 * 2 - 1


def test_the_front_and_the_choice() -> None:
    def candidate(name: str, size: int, macs: int, error: float) -> Candidate:
        return Candidate(name, (), {}, size, macs, error=error)

    every = [
        candidate("a", 9, 9, 0.1),
        candidate("b", 8, 10, 0.2),
        candidate("c", 8, 5, 0.3),
        candidate("d", 3, 6, 0.4),
    ]
    assert [c.name for c in front(every, "parameters")] == ["a", "b", "d"]
    assert [c.name for c in front(every, "macs")] == ["a", "c"]
    many = [candidate(str(i), 100 - i, 100 - i, i / 100) for i in range(100)]
    timed = worth_timing(many, Budget({"unet_ms": 1, "mb": 90 * 2 / 1e6}))
    assert len(timed) == by_error.MAX_TIMED and (timed[0].name, timed[-1].name) == ("10", "99")
    assert choose(every, Budget({"mb": 8 * 2 / 1e6})).name == "b"
    equal = [replace(every[3], parameters=2), every[3]]
    assert choose(equal, Budget({"mb": 1})).parameters == 3, "of equal errors the larger one"


def test_teachers_without_a_removable_part(whole: Candidate) -> None:
    config, _ = student_config("b-base", whole.config)
    bare = replace(whole, config=config | {"mid_block_type": None})
    with pytest.raises(RcdeployError, match="no part of it can be removed"):
        removable_parts(bare, None, TEXT_LENGTH)
    with pytest.raises(RcdeployError) as caught:
        removable_parts(replace(whole, config={**whole.config, "time_cond_proj_dim": 8}), None, TEXT_LENGTH)
    assert len(caught.value.errors) == 5 and all("distilled already" in error for error in caught.value.errors)


def test_combinations_that_are_too_many(whole: Candidate, parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_error, "MAX_COMBINATIONS", 10)
    with pytest.raises(RcdeployError, match="more than 10 combinations"):
        combinations(whole, parts)


@pytest.fixture
def counted(whole: Candidate, parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting parts takes seconds."""
    unmeasured = [replace(part, error=math.nan) for part in parts]
    monkeypatch.setattr(layer_error, "counted_teacher", lambda *_: whole)
    monkeypatch.setattr(layer_error, "removable_parts", lambda *_: unmeasured)


def run(arguments: list[str]) -> Result:
    return CliRunner().invoke(app, arguments)


def test_the_command(
    folder: Path, whole: Candidate, parts: list[Part], counted: None, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    limit = sorted(c.costs["mb"] for c in combinations(whole, parts))[6]
    recipe = recipe_file(teacher={"path": str(folder)}, student={"name": "c-small", "seed": 3})
    mine, plot = recipe.parent / "mine.toml", tmp_path / "plot.svg"
    arguments = ["students", "--teacher", str(folder), "--by-error", "--count", "2", "--runs", "1", "--budget"]
    writing = ["--recipe", str(recipe), "--write", str(mine), "--plot", str(plot)]
    result = run([*arguments, f"mb<={limit},unet_ms<=60000", *writing, "--json"])
    assert result.exit_code == 0, getattr(result.exception, "errors", result.output)
    data = json.loads(result.stdout)
    (chosen,) = (row for row in data["students"] if row["chosen"])
    assert chosen["error"] == min(row["error"] for row in data["students"] if row["within"])
    assert all(row["mb"] <= limit and len(row["seconds"]) == 1 for row in data["students"])
    assert len(data["parts"]) == 5 and data["chosen_error_measured"] > 0
    written = load_recipe(mine).student
    assert written == load_recipe(recipe, chosen["settings"]).student and written.first_weights == "teacher"
    assert written.seed == 3 and plot.read_text().startswith("<?xml")
    result = run([*arguments, f"mb<={limit}"])
    assert "the least predicted error within the limits" in result.output and "mid block" in result.output
    assert f"--set '{chosen['settings'][1]}'" in result.output, "with its blanks and brackets quoted"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--by-error"], "are for --budget"),
        (["--budget", "mb<=1", "--prompts", "x.txt"], "--prompts is for --by-error"),
        (["--budget", "mb<=1", "--by-error", "--prompts", "missing.txt"], "missing.txt does not exist"),
        (["--budget", "mb<=1", "--by-error", "--teacher", "sd-1.4"], "only the shapes are built in"),
        (["--budget", "mb<=0.000001", "--by-error"], "keeps the budget"),
    ],
)
def test_what_the_command_refuses(folder: Path, counted: None, arguments: list[str], message: str) -> None:
    teacher = [] if "--teacher" in arguments else ["--teacher", str(folder)]
    result = run(["students", *teacher, *arguments])
    assert isinstance(result.exception, RcdeployError) and message in str(result.exception)


def test_prompts_of_a_file_or_beside_the_teacher(folder: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    assert layer_error.captions(folder, None, 2) == [PAIRED[0], PAIRED[10]]
    (tmp_path / "mine.txt").write_text("a cat\n\na dog\n")
    assert layer_error.captions(folder, tmp_path / "mine.txt", 8) == ["a cat", "a dog"]
    (tmp_path / "none.txt").write_text("\n")
    for source, file in ((tiny_teacher, None), (folder, tmp_path / "none.txt")):
        with pytest.raises(RcdeployError, match="no captions"):
            layer_error.captions(source, file, 8)
