"""Distillation: gradients, resuming, processes, accumulation, what is kept and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import unet_config
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

from rcdeploy import checkpoint, loop, outcome
from rcdeploy.conditioning import NULL, PAIRED, UNPAIRED
from rcdeploy.diffusion_model import training_target
from rcdeploy.distill.features import FeatureTaps, taps
from rcdeploy.distill.loop import Stopped, distill
from rcdeploy.distill.losses import feature_loss, output_loss, task_loss
from rcdeploy.distill.run import Run
from rcdeploy.distill.step import StudentWithProjectors
from rcdeploy.recipe import Recipe, load_recipe
from rcdeploy.student.build import build_student
from rcdeploy.student.spec import student_config
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

RecipeOf = Callable[..., Recipe]
# from a clean server: a fork of this process would inherit locks that threads of other tests' libraries hold
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["diffusers", "transformers", "rcdeploy.latent_cache"])
STUDENTS = ("b-base", "b-small", "b-tiny", "c-base", "c-small", "c-tiny", "c-micro")
# Adam divides by the size of the gradient: where that is rounding alone, a small eps would make it a whole step
GENTLE = {"adam_eps": 1e-2}


def ran(recipe: Recipe, folder: str = "run", progress: Any = lambda *_: None) -> Run:
    return distill(recipe, Path(folder), progress, lambda _text: None)


def step_folder(folder: str, step: int) -> Path:
    return Path(folder) / "checkpoints" / f"step-{step:08}"


def metrics(folder: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in lines]


def same_bytes(one: str, other: str, step: int) -> None:
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        a, b = load_file(step_folder(one, step) / name), load_file(step_folder(other, step) / name)
        assert list(a) == list(b) and len(a) > 0
        assert [k for k in a if not torch.equal(a[k], b[k])] == [], name
    assert metrics(one) == metrics(other)


def same_to_rounding(one: str, other: str, step: int) -> None:
    a, b = (load_file(step_folder(f, step) / "model.safetensors") for f in (one, other))
    first = load_file(step_folder(one, 1) / "model.safetensors")
    assert a.keys() == b.keys() and any(k.startswith("projectors.") for k in a)
    for name in a:
        moved = (a[name] - first[name]).abs().max()
        assert (a[name] - b[name]).abs().max() <= 1e-3 * moved + 1e-7, name
    for x, y in zip(metrics(one), metrics(other), strict=True):
        assert x.pop("grad_norm") == pytest.approx(y.pop("grad_norm"), rel=2e-3)  # toy norms magnify rounding
        assert x == pytest.approx(y, rel=1e-4)


# gradients


def features_of(student: str, *, checkpointing: bool) -> tuple[StudentWithProjectors, list[torch.Tensor], list[str]]:
    config, _ = student_config(student, unet_config())
    compared = taps(unet_config(), config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StudentWithProjectors(build_student(config, 0), compared, gradient_checkpointing=checkpointing).train()
        x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    _, features = model(x, torch.tensor([10, 700]), text, {})
    return model, features, [t.student for t in compared]


def gradients(model: StudentWithProjectors, feature: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(feature.square().mean(), list(named.values()), retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


@pytest.mark.parametrize("student", STUDENTS)
def test_every_tap_reaches_the_student(student: str) -> None:
    """With and without gradient checkpointing, by the same gradients: none of the taps is dead."""
    plain, features, names = features_of(student, checkpointing=False)
    saving, again, _ = features_of(student, checkpointing=True)
    assert saving.unet.is_gradient_checkpointing and not plain.unet.is_gradient_checkpointing
    for name, feature, feature_again in zip(names, features, again, strict=True):
        expected, got = gradients(plain, feature), gradients(saving, feature_again)
        inside = [k for k in expected if k.startswith(f"unet.{name}.")]
        assert any(expected[k].abs().max() > 0 for k in inside), f"{name}: nothing reaches the tapped block"
        before = [k for k in expected if k.startswith("unet.conv_in.")]
        assert all(expected[k].abs().max() > 0 for k in before), f"{name}: nothing reaches the first layer"
        assert expected.keys() == got.keys()
        for key in expected:
            assert torch.allclose(expected[key], got[key], rtol=1e-4, atol=1e-7), (name, key)


def test_taps_are_the_papers() -> None:
    def pairs(student: str) -> list[tuple[str, str]]:
        return [(t.student, t.teacher) for t in taps(unet_config(), student_config(student, unet_config())[0])]

    downs, ups = [f"down_blocks.{i}" for i in range(4)], [f"up_blocks.{i}" for i in range(4)]
    assert pairs("b-base") == pairs("b-small") == [(n, n) for n in downs + ups]
    assert pairs("c-base") == pairs("c-micro") == [(n, n) for n in [*downs, "mid_block", *ups]]
    assert pairs("b-tiny") == [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1", "down_blocks.1"),
        ("down_blocks.2.attentions.0", "down_blocks.2.attentions.1"),
        ("up_blocks.0", "up_blocks.1"),
        ("up_blocks.1", "up_blocks.2"),
        ("up_blocks.2", "up_blocks.3"),
    ]


@pytest.mark.parametrize("student", STUDENTS)
def test_student_features_have_the_teachers_shapes(student: str) -> None:
    teacher = UNet2DConditionModel(**unet_config()).eval()
    compared = taps(unet_config(), student_config(student, unet_config())[0])
    watch = FeatureTaps(teacher, [t.teacher for t in compared])
    with torch.no_grad(), watch.watching() as wanted:
        teacher(torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), torch.zeros(2, 5, 16))
    _, features, _ = features_of(student, checkpointing=False)
    assert [f.shape for f in features] == [w.shape for w in wanted]


# losses


def test_losses_by_hand() -> None:
    a, b = torch.zeros(2, 1, 1, 2), torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2)
    assert output_loss(a, b).item() == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert feature_loss([a, a], [b, 2 * b]).item() == pytest.approx(7.5 + 30)


def test_the_task_loss_is_of_true_pairs_alone() -> None:
    wanted, said = torch.zeros(4, 1, 1, 1), torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1).requires_grad_()
    loss = task_loss(wanted, said, torch.tensor([PAIRED, UNPAIRED, NULL, UNPAIRED]) != UNPAIRED)
    (gradient,) = torch.autograd.grad(loss, said)
    assert loss.item() == pytest.approx((1 + 9) / 4)
    assert gradient.flatten().tolist() == pytest.approx([0.5, 0, 1.5, 0])
    assert task_loss(wanted, said, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_the_task_loss_asks_for_noise_or_velocity() -> None:
    x, noise, t = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2), torch.tensor([5, 900])
    schedule = DDIMScheduler()
    assert torch.equal(training_target(schedule, x, noise, t), noise)
    a = schedule.alphas_cumprod[t].view(2, 1, 1, 1)
    velocity = training_target(DDIMScheduler(prediction_type="v_prediction"), x, noise, t)
    assert torch.allclose(velocity, a.sqrt() * noise - (1 - a).sqrt() * x, atol=1e-6)
    with pytest.raises(RcdeployError, match="neither epsilon nor v_prediction"):
        training_target(DDIMScheduler(prediction_type="sample"), x, noise, t)


# a whole run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that several tests look at, each made once, by the first test that asks."""
    return tmp_path_factory.mktemp("shared")


def once(shared: Path, recipe: Recipe, name: str) -> None:
    """The uninterrupted run of the recipe, as tmp_path/NAME; and its cache, as tmp_path/cache."""
    if not (shared / name).exists():
        ran(recipe, name)
        shutil.copytree(name, shared / name)
        shutil.copytree("cache", shared / "cache", dirs_exist_ok=True)
    else:
        shutil.copytree(shared / name, name)
        shutil.copytree(shared / "cache", "cache", dirs_exist_ok=True)


@pytest.fixture
def one(tiny_recipe: RecipeOf, shared: Path) -> Recipe:
    """The tiny recipe; in tmp_path/one lies a run of it that nobody interrupted."""
    recipe = tiny_recipe()
    once(shared, recipe, "one")
    return recipe


@pytest.fixture
def whole(tiny_recipe: RecipeOf, shared: Path) -> tuple[Recipe, str]:
    """A run with every checkpoint kept, and a fast EMA."""
    recipe = tiny_recipe(train={"checkpoint_every": 1, "keep_checkpoints": 10, "ema_decay": 0.25})
    once(shared, recipe, "run")
    return recipe, "run"


# the tiny recipe's own losses, as this code gave them when it was tested by all that stands here
GOLDEN = [
    {"loss": 3.33959, "output": 0.266184, "feature": 3.0734},
    {"loss": 3.31802, "output": 0.246577, "feature": 3.07145},
    {"loss": 2.9012, "output": 0.271717, "feature": 2.62948},
]


def test_golden_losses(whole: tuple[Recipe, str]) -> None:
    lines = metrics(whole[1])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line, golden in zip(lines, GOLDEN, strict=False):
        assert {k: line[k] for k in golden} == pytest.approx(golden, rel=1e-3)
        assert line["loss"] == pytest.approx(line["output"] + line["feature"], rel=1e-5)


def test_the_pipeline_draws_in_one_precision_when_the_teacher_is_stored_in_half(
    recipe_file: Callable[..., Path], tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "half"))
    CLIPTextModel.from_pretrained(folder / "text_encoder").half().save_pretrained(folder / "text_encoder")
    recipe = load_recipe(recipe_file(teacher={"path": "half"}, train={"max_steps": 1}))
    ran(recipe, tmp_path / "run")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run/pipeline", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red shirt", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_the_pipeline_opens_with_diffusers_alone(whole: tuple[Recipe, str]) -> None:
    folder = Path(whole[1])
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red shirt", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3) and 0 <= picture.min() <= picture.max() <= 1
    assert tuple(pipeline.unet.config.block_out_channels) == (4, 4, 8, 8)
    averages = load_file(step_folder(whole[1], 6) / "ema.safetensors")
    (file,) = (folder / "pipeline" / "unet").glob("*.safetensors")
    saved = load_file(file)
    assert {f"unet.{k}" for k in saved} == set(averages)
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float16 and torch.equal(tensor, averages[f"unet.{name}"].half()), name
    raw = load_file(step_folder(whole[1], 6) / "model.safetensors")
    assert any(not torch.equal(raw[k].half(), averages[k].half()) for k in averages), "EMA, not the raw weights"
    manifest = Manifest.read(folder, "run")
    assert manifest.wrong_files(folder) == [] and "pipeline/unet/config.json" in manifest.files
    assert manifest.facts["finished"] and manifest.facts["steps"] == 6
    assert {m["kind"] for m in manifest.made_from} == {"latent_cache", "prompt_pool"}


def test_ema_is_warmed_up(whole: tuple[Recipe, str]) -> None:
    """decay of update s = min(decay, (1 + s) / (10 + s)); the first update takes the weights as they are."""
    models = [load_file(step_folder(whole[1], s) / "model.safetensors") for s in range(1, 7)]
    shadow = {k: v.clone() for k, v in models[0].items()}
    for s, model in enumerate(models):
        decay = min(0.25, (1 + s) / (10 + s)) if s else 0.0
        shadow = {k: decay * shadow[k] + (1 - decay) * v for k, v in model.items()}
        saved = load_file(step_folder(whole[1], s + 1) / "ema.safetensors")
        assert all(torch.allclose(saved[k], shadow[k], rtol=1e-5, atol=1e-7) for k in saved), s + 1
        assert json.loads((step_folder(whole[1], s + 1) / "state.json").read_text())["ema_steps"] == s + 1


def test_projectors_are_trained_and_saved(whole: tuple[Recipe, str]) -> None:
    first, last = (load_file(step_folder(whole[1], s) / "model.safetensors") for s in (1, 6))
    projectors = [k for k in last if k.startswith("projectors.")]
    assert len(projectors) == 18, "a weight and a bias for each of c-micro's nine taps"
    assert all(not torch.equal(first[k], last[k]) for k in projectors)
    moments = load_file(step_folder(whole[1], 6) / "optimizer.safetensors")
    assert all(moments[f"{k}/exp_avg"].abs().max() > 0 for k in projectors)
    assert not any(k.startswith("projectors.") for k in load_file(step_folder(whole[1], 6) / "ema.safetensors"))


# interruptions


class Killed(Exception):
    pass


def at_step(step: int, do: Callable[[], None]) -> Callable[..., None]:
    def progress(stage: str, done: int, *_: Any) -> None:
        if stage == "distill" and done == step:
            do()

    return progress


def fail() -> None:
    raise Killed


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_resumed_run_equals_an_uninterrupted_one(one: Recipe) -> None:
    with pytest.raises(Killed):
        ran(one, "other", at_step(5, fail))
    assert checkpoint.steps_of(Path("other")) == [2, 4] and not Path("other/pipeline").exists()
    assert ran(one, "other").step == 6
    same_bytes("one", "other", 6)
    assert Manifest.read(Path("one"), "run").files == Manifest.read(Path("other"), "run").files


def test_figures_over_steps_of_before_and_after(tiny_recipe: RecipeOf) -> None:
    """Logged are means over log_every steps: those done before an interruption count."""
    recipe = tiny_recipe(train={"log_every": 4, "checkpoint_every": 3})
    ran(recipe, "one")
    with pytest.raises(Killed):
        ran(recipe, "other", at_step(4, fail))
    ran(recipe, "other")
    assert [line["step"] for line in metrics("one")] == [4, 6]
    same_bytes("one", "other", 6)


def _run_and_die(recipe: Recipe, where: str) -> None:
    if where == "between checkpoints":
        ran(recipe, "other", at_step(5, kill))
    save = checkpoint.save_tensors

    def dying(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        save(path, tensors)
        if path.name == "optimizer.safetensors" and "step-00000004" in str(path):
            kill()

    checkpoint.save_tensors = dying
    ran(recipe, "other")


@pytest.mark.parametrize(("where", "left"), [("between checkpoints", [2, 4]), ("while one is written", [2])])
def test_a_killed_run_goes_on(one: Recipe, where: str, left: list[int]) -> None:
    process = FORK.Process(target=_run_and_die, args=(one, where))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.steps_of(Path("other")) == left
    ran(one, "other")
    same_bytes("one", "other", 6)
    assert not list(Path("other").rglob("*.part")) and not list(Path("other").rglob("*.old"))


def test_ctrl_c_writes_a_checkpoint(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """The installed command, a real SIGINT: exit code 130, the step in hand saved, and no traceback."""
    file = recipe_file(train={"max_steps": 100_000, "checkpoint_every": 100_000})
    command = [sys.executable, "-m", "rcdeploy.cli.main", "distill", str(file), "--out", "run", "-q"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").is_file():
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=100)[1]
    finally:
        process.kill()
    assert process.returncode == 130, said
    (step,) = checkpoint.steps_of(tmp_path / "run")
    assert f"stopped after step {step:,}; the same command goes on from there" in " ".join(said.split())
    assert "Traceback" not in said


def test_a_signal_ends_the_step_first(one: Recipe, tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(train={"checkpoint_every": 100})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after step 4"):
        ran(recipe, "other", at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.steps_of(Path("other")) == [4]
    ran(recipe, "other")
    same_bytes("one", "other", 6)


# processes and accumulation


def test_accumulated_parts_equal_one_batch(tiny_recipe: RecipeOf) -> None:
    """All three losses, the task loss too, whose true pairs are spread unevenly over the parts."""
    train = {**GENTLE, "max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9}
    settings = {"loss": {"task": 1.0}, "conditioning": {"probability": "constant"}}
    ran(tiny_recipe(train=train, **settings), "whole")
    ran(tiny_recipe(train={**train, "micro_batch_size": 1}, **settings), "parts")
    same_to_rounding("whole", "parts", 3)


def test_two_processes_equal_one(recipe_file: Callable[..., Path], tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    train = {**GENTLE, "max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9}
    ran(tiny_recipe(train=train), "one")
    options = {"--num_processes": "2", "--num_machines": "1", "--mixed_precision": "no", "--main_process_port": "0"}
    launch = ["-m", "accelerate.commands.launch", "--cpu", *(word for pair in options.items() for word in pair)]
    command = ["-m", "rcdeploy.cli.main", "distill", str(recipe_file(train=train)), "--out", "two", "-q"]
    done = subprocess.run(
        [sys.executable, *launch, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same_to_rounding("one", "two", 3)
    assert Manifest.read(Path("two"), "run").wrong_files(Path("two")) == []


# what is refused


def test_a_changed_recipe_is_refused(whole: tuple[Recipe, str], tiny_recipe: RecipeOf) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    before = {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")}
    with pytest.raises(RcdeployError, match="holds a run of another recipe") as caught:
        ran(tiny_recipe(train={**train, "learning_rate": 5e-4, "seed": 3}, student={"name": "c-tiny"}), folder)
    assert [line.strip() for line in caught.value.message.splitlines()[1:]] == [
        "student.name: c-micro -> c-tiny",
        "train.learning_rate: 0.001 -> 0.0005",
        "train.seed: 0 -> 3",
    ]
    assert "--restart" in str(caught.value.fix)
    assert {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")} == before


def test_a_finished_run_may_go_on_for_longer(whole: tuple[Recipe, str], tiny_recipe: RecipeOf) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    assert ran(tiny_recipe(train={**train, "max_steps": 8, "log_every": 2}), folder).step == 8
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4, 5, 6, 8]
    assert checkpoint.steps_of(Path(folder))[-2:] == [7, 8]


def test_another_teacher_is_refused(
    whole: tuple[Recipe, str], tiny_recipe: RecipeOf, other_teacher: Path, tmp_path: Path
) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    other = tiny_recipe(train=train, teacher={"path": str(other_teacher)}, cache={"folder": "another"})
    with pytest.raises(RcdeployError, match="begun with another teacher"):
        ran(other, folder)
    assert not (tmp_path / "another").exists(), "it is refused before latents are made"


def test_other_prompts_are_refused(whole: tuple[Recipe, str], tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe, folder = whole
    train = recipe.train.model_dump(exclude={"micro_batch_size"})
    (tmp_path / "more.txt").write_text("a purple hat\n")
    with pytest.raises(RcdeployError, match="begun with another prompt_pool"):
        ran(tiny_recipe(train=train, prompts={"pool": ["further.txt", "more.txt"]}), folder)


def test_a_truncated_checkpoint_is_named(whole: tuple[Recipe, str]) -> None:
    recipe, folder = whole
    file = step_folder(folder, 6) / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RcdeployError, match=r"step-00000006/ema\.safetensors cannot be read"):
        ran(recipe, folder)


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_stops_the_run_and_leaves_the_last_good_checkpoint(
    tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """Found in the loss where it is logged, else in the weights before they are saved."""
    count, original = iter(range(100)), loop.losses

    def losses(*args: Any) -> Any:
        total, each = original(*args)
        factor = float("nan") if next(count) == 2 else 1.0
        return total * factor, {name: value * factor for name, value in each.items()}

    monkeypatch.setattr(loop, "losses", losses)
    recipe = tiny_recipe(train={"log_every": log_every})
    with pytest.raises(RcdeployError, match="the loss is nan at step 3" if log_every == 1 else "not finite at step 4"):
        ran(recipe)
    assert checkpoint.steps_of(Path("run")) == [2] and not Path("run/pipeline").exists()
    assert all(t.isfinite().all() for t in load_file(step_folder("run", 2) / "model.safetensors").values())
    monkeypatch.setattr(loop, "losses", original)
    assert ran(recipe).step == 6, "the same command goes on from there"


def test_a_loss_that_runs_away_stops_the_run(tiny_recipe: RecipeOf) -> None:
    with pytest.raises(RcdeployError, match="diverged") as caught:
        ran(tiny_recipe(train={"learning_rate": 1e3, "checkpoint_every": 1}))
    assert "train.learning_rate" in str(caught.value.fix)


def test_a_full_disk_leaves_no_half_checkpoint(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    recipe = tiny_recipe()
    with pytest.raises(Killed):
        ran(recipe, "run", at_step(3, fail))
    monkeypatch.setattr("rcdeploy.storage.tensors.save_file", full)
    with pytest.raises(RcdeployError, match="No space left on device"):
        ran(recipe)
    assert checkpoint.steps_of(Path("run")) == [2]
    assert [p.name for p in Path("run/checkpoints").iterdir()] == ["step-00000002"]


# what is kept


def test_the_last_checkpoints_and_the_best_are_kept(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(outcome, "validation_loss", lambda *_: next(found))
    monkeypatch.setattr(outcome, "_draw_grid", lambda *_: None)
    recipe = tiny_recipe(train={"max_steps": 8, "checkpoint_every": 2, "keep_checkpoints": 1}, evaluate={"every": 2})
    assert ran(recipe).best == (1.0, 4)
    assert checkpoint.steps_of(Path("run")) == [4, 8]
    assert Manifest.read(Path("run"), "run").facts["best_step"] == 4


def test_pictures_and_curves_of_a_run(tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(train={"max_steps": 2}, evaluate={"every": 2, "prompts": ["a red shirt", "a blue bag"]})
    run = ran(recipe)
    lines = [line for line in metrics("run") if "validation" in line]
    assert [line["step"] for line in lines] == [2] and run.best == (lines[0]["validation"], 2)
    assert (Path("run") / "loss.png").stat().st_size > 0
    latest = Path("run") / "samples" / "latest.png"
    assert latest.read_bytes() == (Path("run") / "samples" / "step-00000002.png").read_bytes()
