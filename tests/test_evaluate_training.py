"""Scores during training, the best step, and the evaluation of runs and their checkpoints by their own recipe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation import evaluate, save_clip
from safetensors.torch import load_file

from rcdeploy.distill.distillation import DistillationObjective
from rcdeploy.distill.loop import distill
from rcdeploy.distill.train_state import TrainState
from rcdeploy.distill.validation import Validator
from rcdeploy.evaluate.spec import is_better
from rcdeploy.progress import no_log, no_progress
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

RecipeOf = Callable[..., Recipe]


def trained(recipe: Recipe) -> TrainState:
    return distill(recipe, Path("runs/tiny"), no_progress, no_log)


def metrics_of(name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_run_scores_itself_and_is_evaluated_by_its_recipe(
    tiny_recipe: RecipeOf, judged: Path, captions: Path
) -> None:
    scored = {"every": 3, "score": "judge", "count": 12, "prompt_files": [str(captions)]}
    state = trained(tiny_recipe(teacher={"path": str(judged)}, evaluate=scored))
    scores = metrics_of("judge.all")
    assert set(scores) == {3, 6} and metrics_of("validation").keys() == scores.keys()
    best = max(scores, key=lambda step: (scores[step], -step))
    assert state.best == (scores[best], best)
    facts = Manifest.read(Path("runs/tiny"), "run").facts
    assert (facts["best_step"], facts["best_score"], facts["score"]) == (best, scores[best], "judge.all")
    assert facts["pipeline_step"] == 6
    assert not list(Path("runs/tiny/evaluations").iterdir()), "scored images are not kept"

    record = evaluate()  # the newest run, its prompts, its count, its judge
    assert record["model"]["kind"] == "run" and record["counts"] == {"all": 12}
    assert record["scores"]["all"]["judge.all"] == pytest.approx(scores[6], abs=1 / 12), "pipelines are stored in fp16"

    for at, step in (("3", 3), ("last", 6), ("best", best)):
        from_checkpoint = evaluate("runs/tiny", "--checkpoint", at)
        assert from_checkpoint["model"]["step"] == step
        assert from_checkpoint["scores"]["all"]["judge.all"] == scores[step], "the same images"
    with pytest.raises(RcdeployError, match="has no checkpoint '5'") as caught:
        evaluate("runs/tiny", "--checkpoint", "5")
    assert "3, " in str(caught.value.fix)


def test_two_processes_of_a_training_sample_together(
    recipe_file: Callable[..., Path], tiny_recipe: RecipeOf, judged: Path
) -> None:
    changes = {
        "teacher": {"path": str(judged)},
        "train": {"max_steps": 2, "adam_eps": 1e-2, "learning_rate": 1e-6},
        "evaluate": {"every": 1, "score": "judge", "count": 12},
    }
    trained(tiny_recipe(**changes))
    one = metrics_of("judge.all")
    options = {"--num_processes": "2", "--num_machines": "1", "--mixed_precision": "no", "--main_process_port": "0"}
    launch = ["-m", "accelerate.commands.launch", "--cpu", *(word for pair in options.items() for word in pair)]
    command = ["-m", "rcdeploy.cli.main", "distill", str(recipe_file(**changes)), "--out", "runs/two", "-q"]
    done = subprocess.run([sys.executable, *launch, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree("runs/tiny")
    Path("runs/two").rename("runs/tiny")
    assert metrics_of("judge.all") == pytest.approx(one, abs=1 / 12 + 1e-6), "one image may differ by rounding"
    assert not list(Path("runs/tiny/evaluations").iterdir())


def test_the_best_clip_score_is_kept(tiny_recipe: RecipeOf, captions: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    section = {"every": 1, "score": "clip", "keep": "best", "clip": str(clip), "count": 6}
    state = trained(tiny_recipe(train={"max_steps": 2}, evaluate={**section, "prompt_files": [str(captions)]}))
    scores = metrics_of("clip")
    assert set(scores) == {1, 2} and len(set(scores.values())) > 1 and all(abs(x) <= 1 for x in scores.values())
    best = max(scores, key=lambda step: (scores[step], -step))
    assert state.best == (scores[best], best)
    facts = Manifest.read(Path("runs/tiny"), "run").facts
    assert (facts["score"], facts["best_step"], facts["pipeline_step"]) == ("clip", best, best)
    record = evaluate("runs/tiny", "--checkpoint", "best", "--metrics", "clip")
    assert record["scores"]["all"]["clip"] == scores[best], "the recipe's CLIP model, prompts and count"


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (None, "laion/CLIP-ViT-g-14.* cannot be fetched from the hub"),
        ("someone/clip", "someone/clip is not a local folder and cannot be fetched from the hub"),
        ("empty", "holds no CLIP model"),
    ],
)
def test_a_clip_model_that_is_not_there_is_an_error_before_anything_is_made(
    tiny_recipe: RecipeOf, tmp_path: Path, clip: str | None, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    recipe = tiny_recipe(evaluate={"every": 2, "score": "clip", "clip": clip})
    with pytest.raises(RcdeployError, match=f"evaluate.score = 'clip': .*{message}") as caught:
        trained(recipe)
    assert "evaluate.score = 'validation'" in str(caught.value.fix)
    assert not Path("runs/tiny").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_step_can_become_the_pipeline(
    tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(DistillationObjective, "validation_loss", lambda *_: next(losses))
    monkeypatch.setattr(Validator, "_write_grid", lambda *_: None)
    trained(tiny_recipe(evaluate={"every": 2, "keep": keep}))
    step = {"last": 6, "best": 2}[keep]
    assert Manifest.read(Path("runs/tiny"), "run").facts["pipeline_step"] == step
    averages = load_file(f"runs/tiny/checkpoints/step-{step:08}/ema.safetensors")
    written = load_file("runs/tiny/pipeline/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[name.removeprefix("unet.")], value.half()) for name, value in averages.items())


def test_another_score_begins_its_best_anew(tiny_recipe: RecipeOf, judged: Path) -> None:
    teacher = {"path": str(judged)}
    trained(tiny_recipe(teacher=teacher, train={"max_steps": 2}, evaluate={"every": 2}))
    state = trained(tiny_recipe(teacher=teacher, train={"max_steps": 4}, evaluate={"every": 2, "score": "judge"}))
    assert state.best is not None and state.best[1] == 4, "a validation loss is not compared with an accuracy"


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [("validation", 1.0, 2.0), ("fid", 10.0, 20.0), ("clip", 0.3, 0.2), ("judge.all", 0.9, 0.1)],
)
def test_which_way_is_better(metric: str, better: float, worse: float) -> None:
    assert is_better(metric, better, worse) and not is_better(metric, worse, better)
    assert not is_better(metric, better, better), "the earlier step stays the best"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"score": "fid"}, "evaluate.inception: score = 'fid' needs it"),
        ({"score": "fid"}, "evaluate.reference: score = 'fid' needs it"),
        ({"score": "fid", "count": 2048}, "evaluate.count: score = 'fid' needs more than 2048"),
        ({"score": "judge", "every": 2}, "has no judge/"),
        ({"score": "fis"}, "did you mean 'fid'"),
        ({"keep": "best"}, "evaluate.every: 0 never evaluates"),
        ({"clip": "clip"}, "clip does not exist"),
        ({"inception": "inception.safetensors"}, "inception.safetensors does not exist"),
        ({"prompt_files": ["gone.txt"]}, "gone.txt does not exist"),
    ],
)
def test_contradictions_in_a_recipe(recipe_file: Callable[..., Path], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RcdeployError) as caught:
        load_recipe(recipe_file(evaluate=keys))
    assert message in caught.value.problem


def test_prompts_of_which_the_judge_knows_nothing(tiny_recipe: RecipeOf, judged: Path, tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text("a cat\n")
    recipe = tiny_recipe(
        teacher={"path": str(judged)}, evaluate={"every": 2, "score": "judge", "prompt_files": ["cats.txt"]}
    )
    with pytest.raises(RcdeployError, match="recognises no attribute"):
        trained(recipe)


def test_a_run_whose_prompts_are_gone_takes_its_caches(tiny_recipe: RecipeOf, judged: Path, tmp_path: Path) -> None:
    trained(tiny_recipe(teacher={"path": str(judged)}, train={"max_steps": 1}))
    assert evaluate()["counts"] == {"all": 20}, "all captions, also those without a latent"
    (tmp_path / "paired.txt").unlink()
    assert evaluate()["counts"] == {"all": 12}
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RcdeployError, match=r"paired\.txt of its recipe does not exist"):
        evaluate()
