"""Recipes: the paper's defaults, every error at once, overrides, paths."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rcdeploy.distill.build_run import accumulation_steps
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe, shipped_recipes
from rcdeploy.recipe_student import Student
from rcdeploy.student.built_in import built_in_teacher
from rcdeploy.student.spec import STUDENTS, StudentSpec
from rcdeploy_runtime.errors import RcdeployError

RecipeFile = Callable[..., Path]
ROOT = Path(__file__).parent.parent


def errors_of(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(RcdeployError) as caught:
        load_recipe(file, list(overrides))
    return list(caught.value.errors)


def test_defaults_are_the_papers() -> None:
    recipe = Recipe.model_validate({"name": "x", "teacher": {"path": "t"}, "prompts": {"paired": ["p"]}})
    train = recipe.train
    cache = recipe.cache
    conditioning = recipe.conditioning
    loss = recipe.loss
    assert (train.global_batch_size, train.learning_rate, train.lr_schedule) == (256, 5e-5, "constant")
    assert (train.adam_beta1, train.adam_beta2, train.adam_eps, train.weight_decay) == (0.9, 0.999, 1e-8, 1e-2)
    assert (train.max_grad_norm, train.mixed_precision, train.ema_decay) == (1.0, "fp16", 0.9999)
    assert (cache.source, cache.num_inference_steps, cache.guidance_scale) == ("teacher", 25, 7.5)
    assert (conditioning.probability, conditioning.rate, conditioning.null_probability) == ("exponential", 5.0, 0.1)
    assert (conditioning.steepness, conditioning.centre) == (20.0, 0.7)
    assert (loss.output, loss.feature, loss.task) == (1.0, 1.0, 0.0)
    assert recipe.evaluate.every == 25_000


@pytest.mark.parametrize("file", shipped_recipes(), ids=lambda f: f.stem)
def test_shipped_recipes_are_right(file: Path) -> None:
    recipe = load_recipe(file, check_files=False)
    assert recipe.name == file.stem
    text = file.read_text()
    assert text.startswith("# ") and "# Launch: " in text and "Cost: " in text


@pytest.mark.parametrize("name", ["b-base", "b-small", "b-tiny", "c-base", "c-small", "c-tiny", "c-micro"])
def test_the_papers_students_are_trained_as_in_the_paper(name: str) -> None:
    recipe = load_recipe(ROOT / f"recipes/{name.replace('-', '_')}.toml", check_files=False)
    block = name.startswith("b-")
    assert recipe.student.name == name
    assert recipe.student.first_weights == ("teacher" if block else "random")
    assert recipe.conditioning.probability == ("exponential" if block else "sigmoid")
    assert recipe.train.max_steps == (125_000 if block else 400_000)
    assert accumulation_steps(recipe.train, 4) * 4 * 16 == 256


@pytest.mark.parametrize("student", ["b_base", "b_small", "b_tiny", "c_micro"])
def test_students_of_sd2_are_trained_as_those_of_sd14(student: str) -> None:
    with_sd14 = load_recipe(ROOT / f"recipes/{student}.toml", check_files=False)
    file = ROOT / f"recipes/sd21_{student}.toml"
    recipe = load_recipe(file, check_files=False)
    for section in ("student", "prompts", "conditioning", "loss", "train", "evaluate"):
        assert getattr(recipe, section) == getattr(with_sd14, section)
    assert recipe.cache.resolution is None, "the native size, which is another one for the 768-pixel teacher"
    line = next(line for line in file.read_text().splitlines() if "--set teacher.path=" in line).split()
    assert built_in_teacher(recipe.teacher.path) == "sd-2.1-base"
    larger = load_recipe(file, [line[line.index("--set") + 1]], check_files=False)
    assert built_in_teacher(larger.teacher.path) == "sd-2.1"


def test_all_errors_are_reported_at_once(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        student={"name": "c-mikro"},
        cache={"num_inference_step": 3},
        conditioning={"probability": "exponental", "null_probability": 1.5},
        train={"max_steps": "many"},
        losses={"output": 1},
    )
    errors = errors_of(file, "train.sede=1", "evaluat.every=2", "nonsense")
    assert any("[losses]: no such section; did you mean 'loss'?" in e for e in errors)
    assert any("cache.num_inference_step: no such key; did you mean 'num_inference_steps'?" in e for e in errors)
    assert any("student.name: 'c-mikro' is none of b-base" in e and "did you mean 'c-micro'?" in e for e in errors)
    assert any("conditioning.probability: should be 'none'" in e and "'exponential'?" in e for e in errors)
    assert any("conditioning.null_probability: should be less than or equal to 1, not 1.5" in e for e in errors)
    assert any("train.max_steps: should be a valid integer" in e and "not 'many'" in e for e in errors)
    assert any("train.sede: no such key; did you mean 'seed'?" in e for e in errors)
    assert any("no section 'evaluat'; did you mean 'evaluate'?" in e for e in errors)
    assert any("--set nonsense: write it as section.key=value" in e for e in errors)
    assert len(errors) == 9


def test_needed_keys_and_sections(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[teacher]\n")
    errors = errors_of(tmp_path / "r.toml")
    assert any(e.startswith("teacher.path: this key is needed (diffusers folder") for e in errors)
    assert "[prompts]: this section is needed" in errors
    (tmp_path / "r.toml").write_text("[teacher\n")
    with pytest.raises(RcdeployError, match="cannot be read as TOML"):
        load_recipe(tmp_path / "r.toml")
    with pytest.raises(RcdeployError, match=r"there is no recipe .*rr\.toml; did you mean .*r\.toml\?"):
        load_recipe(tmp_path / "rr.toml")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"student": {"init": "teacher"}}, "student.init: 'teacher' copies whole tensors"),
        (
            {"student": {"name": "b-tiny", "init": "sliced"}},
            "student.init: 'sliced' is for students with fewer channels",
        ),
        ({"train": {"micro_batch_size": 3}}, "train.micro_batch_size: 3 does not divide global_batch_size = 4"),
        ({"cache": {"source": "real"}}, "cache.images: source = 'real' needs a folder"),
        ({"cache": {"images": "further.txt"}}, "cache.images: only with source = 'real'"),
        (
            {"conditioning": {"probability": "constant", "constant": 1.0}, "loss": {"task": 1.0}},
            "loss.task: needs paired prompts",
        ),
        ({"loss": {"output": 0, "feature": 0}}, "loss: all weights are 0"),
        ({"prompts": {"paired": ["nowhere.txt"]}}, "nowhere.txt does not exist"),
        ({"prompts": {"paired": []}}, "prompts.paired: "),
        ({"teacher": {"path": "nowhere"}}, "teacher.path: there is no folder"),
        ({"teacher": {"path": "."}}, "is not in diffusers' layout"),
        ({"student": {"name": "koala-1b"}}, "koala-1b does not fit"),
    ],
)
def test_contradictions_and_missing_files(recipe_file: RecipeFile, changes: dict, expected: str) -> None:
    errors = errors_of(recipe_file(**changes))
    assert any(expected in e for e in errors), errors


def test_a_teacher_of_another_class_is_named(recipe_file: RecipeFile, tmp_path: Path) -> None:
    folder = tmp_path / "flux"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    (error,) = errors_of(recipe_file(teacher={"path": str(folder)}))
    assert "is a FluxTransformer2DModel, not a UNet2DConditionModel" in error


def test_overrides_are_typed(recipe_file: RecipeFile) -> None:
    overrides = ["train.max_steps=3", "train.learning_rate=1e-4", "student.name=b-tiny", "train.trackers=[]"]
    recipe = load_recipe(
        recipe_file(), [*overrides, "train.gradient_checkpointing=true", 'evaluate.prompts=["a", "b"]']
    )
    assert (recipe.train.max_steps, recipe.train.learning_rate, recipe.student.name) == (3, 1e-4, "b-tiny")
    assert recipe.train.gradient_checkpointing and recipe.evaluate.prompts == ["a", "b"]


def test_paths_start_at_the_recipe_and_overrides_at_the_current_folder(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(file, ["cache.folder=mine"])
    assert recipe.prompts.paired == [str(tmp_path / "paired.txt")]
    assert recipe.cache.folder == str(tmp_path / "elsewhere" / "mine")
    hub = load_recipe(file, ["teacher.path=CompVis/stable-diffusion-v1-4"])
    assert hub.teacher.path == "CompVis/stable-diffusion-v1-4"


def test_recipes_are_frozen_and_resolve_to_json(recipe_file: RecipeFile) -> None:
    recipe = load_recipe(recipe_file())
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.max_steps = 3  # type: ignore[misc]
    assert Recipe.model_validate(json.loads(json.dumps(recipe.resolved()))) == recipe


def test_batches_must_divide_over_processes(recipe_file: RecipeFile) -> None:
    train = load_recipe(recipe_file(train={"global_batch_size": 8, "micro_batch_size": 2})).train
    assert [accumulation_steps(train, n) for n in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(RcdeployError, match="not a multiple of micro_batch_size x processes = 2 x 3"):
        accumulation_steps(train, 3)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("train.learning_rate=inf", "train.learning_rate"),
        ("train.adam_eps=nan", "train.adam_eps"),
        ("conditioning.centre=nan", "conditioning.centre"),
        ("conditioning.rate=inf", "conditioning.rate"),
        ("loss.feature=inf", "loss.feature"),
        ("cache.guidance_scale=inf", "cache.guidance_scale"),
        ("train.global_batch_size=1000000000000", "train.global_batch_size"),
        (f"train.seed={2**70}", "train.seed"),
        (f"cache.seed={2**63}", "cache.seed"),
        ("cache.num_inference_steps=1000000", "cache.num_inference_steps"),
        ("cache.resolution=1000000000", "cache.resolution"),
        ("evaluate.validation_size=10000000", "evaluate.validation_size"),
    ],
)
def test_numbers_are_finite_and_bounded(recipe_file: RecipeFile, override: str, where: str) -> None:
    assert [e.split(":")[0] for e in errors_of(recipe_file(), override)] == [where]


@pytest.mark.parametrize("path", ["a\0b", "x" * 256, "x/" * 3000])
@pytest.mark.parametrize("key", ["teacher.path", "prompts.pool", "cache.folder"])
def test_what_no_file_system_takes_is_no_path(recipe_file: RecipeFile, key: str, path: str) -> None:
    section, name = key.split(".")
    value = [path] if section == "prompts" else path
    with pytest.raises(RcdeployError, match=f"{key}: .* is no path"):
        load_recipe(recipe_file(**{section: {name: value}}))
    with pytest.raises(RcdeployError, match=f"--set {key}: .* is no path"):
        load_recipe(recipe_file(), [f"{key}={json.dumps(value)}"])


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/b", "", "..", "-rf", "x" * 101, "a\nb", 3])
def test_a_name_is_the_name_of_a_folder(recipe_file: RecipeFile, name: object) -> None:
    file = recipe_file()
    file.write_text(f"name = {json.dumps(name)}\n{file.read_text()}")
    assert [e.split(":")[0] for e in errors_of(file)] == ["name"]


@pytest.mark.parametrize("name", ["a", "c_micro", "SD 1.5", "v2.1+lr", "Größe"])
def test_names_that_are_fine(recipe_file: RecipeFile, name: str) -> None:
    file = recipe_file()
    file.write_text(f"name = {json.dumps(name)}\n{file.read_text()}")
    assert load_recipe(file).name == name


def test_a_width_and_layers_beside_a_name() -> None:
    """A width alone makes a channel student; a block student of that name is narrowed. A recipe that was read once more
    says the same."""
    for section, spec, label, weights in (
        ({"width": 0.3}, StudentSpec(width=0.3), "width 0.3", "random"),
        ({"name": "c-base", "width": 0.3}, StudentSpec(width=0.3), "width 0.3", "random"),
        ({"name": "b-tiny"}, STUDENTS["b-tiny"], "b-tiny", "teacher"),
        (
            {"name": "b-small", "layers": [2, 1, 1, 2]},
            StudentSpec(layers=(2, 1, 1, 2), drop_mid_block=True),
            "b-small of layers 2/1/1/2",
            "teacher",
        ),
        (
            {"name": "b-base", "layers": [2, 1], "width": 0.7},
            StudentSpec(layers=(2, 1), width=0.7),
            "b-base of layers 2/1 and width 0.7",
            "random",
        ),
        ({"name": "b-tiny", "width": 0.7}, replace(STUDENTS["b-tiny"], width=0.7), "b-tiny of width 0.7", "random"),
    ):
        for student in (Student(**section), Student(**Student(**section).model_dump())):
            assert (student.spec, student.label, student.first_weights) == (spec, label, weights)


def test_layers_that_are_refused(recipe_file: RecipeFile) -> None:
    for section, message in (
        ({"layers": [2, 1, 1, 2]}, "student.layers: layers go beside the name of a block student, and c-micro is none"),
        ({"name": "koala-1b", "layers": [1, 1, 1]}, "koala-1b is none"),
        ({"name": "b-base", "layers": []}, "student.layers: "),
        ({"name": "b-base", "layers": [2, 0, 1, 1]}, "student.layers.1: "),
        ({"name": "b-base", "layers": 2}, "student.layers: "),
        (
            {"name": "b-tiny", "layers": [2, 1, 1, 2]},
            "student.layers: this student does not fit the teacher: layers 2/1",
        ),
        ({"name": "b-base", "layers": [2, 2, 2, 2]}, "nothing would be removed"),
    ):
        (error,) = errors_of(recipe_file(student=section))
        assert message in error, error
