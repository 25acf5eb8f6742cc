"""rcdeploy evaluate as a user meets it: pictures, scores, halves; killed, shared, and given what is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PAIRED, THINGS
from PIL import Image
from safetensors.torch import load_file, save_file
from test_clip_score import clip  # noqa: F401
from test_scores import seeded_inception
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.loop import distill
from rcdeploy.distill.run import Run
from rcdeploy.distill.validation import Validator
from rcdeploy.evaluate import metrics
from rcdeploy.evaluate.evaluation import evaluate
from rcdeploy.evaluate.frechet import Statistics
from rcdeploy.evaluate.image_set import open_set
from rcdeploy.evaluate.judge import Judge
from rcdeploy.evaluate.metrics import Weights, open_scorer
from rcdeploy.evaluate.source import open_source
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

RecipeOf = Callable[..., Recipe]
ATTRIBUTES = {
    "item": {"labels": list(THINGS), "pattern": f"({'|'.join(THINGS)})"},
    "colour": {"labels": ["red", "blue"], "pattern": "(red|blue)"},
}
# from a clean server: a fork of this process would inherit locks that threads of other tests' libraries hold
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["diffusers", "transformers", "rcdeploy.evaluate.source"])
FAST = ["--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="session")
def judged(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher with a judge of random weights, and statistics for it."""
    folder = tmp_path_factory.mktemp("judged") / "tiny"
    shutil.copytree(tiny_teacher, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge(ATTRIBUTES, width=4).eval()
        judge.save(folder / "judge")
        Statistics.of(torch.rand(40, 16)).save(folder / "judge" / "reference.safetensors")
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    (tmp_path / "captions.txt").write_text("".join(f"{p}\n" for p in PAIRED))
    return tmp_path / "captions.txt"


def evaluated(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), *FAST, "--json"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def shards(folder: str | Path, what: str = "*") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob(f"{what}-*.safetensors"))}


def test_a_teacher_is_drawn_scored_and_written_down(judged: Path, captions: Path) -> None:
    arguments = (judged, "--prompts", captions, "--count", 18, "--shard-size", 8, "--batch-size", 4)
    said = evaluated(*arguments)
    folder = Path(said["folder"])
    assert folder.parent == Path("evaluations") and folder.name.startswith("tiny-")
    assert json.loads((folder / "scores.json").read_text()) == said
    scores = said["scores"]["all"]
    assert set(scores) == {f"judge.{n}" for n in ("item", "colour", "all", "inception_score", "frechet_distance")}
    assert said["counts"] == {"all": 18} and said["seconds"]["pictures_drawn"] == 18
    assert said["weights"]["judge_reference"]["count"] == 40 and len(said["weights"]["judge"]["sha256"]) == 64
    assert said["model"]["digest"] == LatentDiffusionModel(str(judged)).revision
    prompts = (folder / "prompts.txt").read_text().splitlines()
    assert len(prompts) == 18 and set(prompts) < set(PAIRED)
    assert Manifest.read(folder, "evaluation").facts["identity"]["guidance_scale"] == 7.5
    with Image.open(folder / "pictures.png") as grid:
        assert grid.height == 50 + 3 * 132, "18 pictures stand in three rows"

    kept = [load_file(p)["pictures"] for p in sorted(folder.glob("pictures-*.safetensors"))]
    assert [tuple(k.shape) for k in kept] == [(8, 3, 64, 64), (8, 3, 64, 64), (2, 3, 64, 64)]
    assert all(k.dtype == torch.uint8 for k in kept)
    model = LatentDiffusionModel(str(judged))
    by_hand = sample_images(model, [prompts[9]], runtime_noise(model, [9], (64, 64)), num_inference_steps=2)
    assert (torch.cat(kept)[9] / 255 - by_hand[0]).abs().max() < 1.6 / 255, "picture 9 is a function of (seed, 9)"

    before = shards(folder)
    again = evaluated(*arguments, "--shard-size", 3)  # a folder that was begun keeps its shards
    assert again["seconds"]["pictures_drawn"] == 0
    assert again["scores"] == said["scores"] and shards(folder) == before

    other = evaluated(*arguments, "--seed", 1)
    assert other["folder"] != said["folder"] and other["seconds"]["pictures_drawn"] == 18


def test_halves_and_what_a_person_sees(judged: Path, captions: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# seen\nshoe\nba[gt]\n")
    arguments = ["evaluate", str(judged), "--prompts", str(captions), "--split", "words.txt", *FAST]
    said = evaluated(judged, "--prompts", captions, "--split", "words.txt")
    assert said["counts"] == {"all": 20, "with": 8, "without": 12}
    item = {part: scores["judge.item"] for part, scores in said["scores"].items()}
    assert 20 * item["all"] == pytest.approx(8 * item["with"] + 12 * item["without"], abs=1e-3)
    assert "judge.frechet_distance" not in said["scores"]["with"], "8 pictures are too few for 16 features"
    page = CliRunner().invoke(app, arguments)
    assert page.exit_code == 0
    assert "judge.item" in page.stdout and "higher" in page.stdout and "lower" in page.stdout
    assert "no judge.frechet_distance of with, without: it takes more than 16" in page.stderr
    assert "(8 with, 12 without)" in " ".join(page.stdout.split()) and "scores.json" in page.stdout


def test_prompts_with_animals(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("two dogs\na red shoe\na flock of geese\na polar bear on ice\na catalogue\n")
    said = evaluated(judged, "--prompts", "p.txt", "--split", "animals", "--out", "set")
    assert said["counts"] == {"all": 5, "with": 3, "without": 2}
    assert Path("set/prompts.txt").read_text().splitlines()[1] == "a red shoe", "all of them: in the file's order"


def test_a_package_draws_from_the_same_noise_as_its_source(package: Path, small_model: Path, captions: Path) -> None:
    pictures = []
    shutil.copytree(small_model, "model")
    torch.manual_seed(0)
    Judge(ATTRIBUTES, width=4).eval().save(Path("judge"))
    for subject in (package, "model"):
        said = evaluated(subject, "--prompts", captions, "--count", 3, "--judge", "judge", "--seed", 5)
        (file,) = Path(said["folder"]).glob("pictures-*.safetensors")
        pictures.append(load_file(file)["pictures"].float())
    difference = (pictures[0] - pictures[1]).abs()
    assert difference.mean() < 1 and pictures[0].std() > 1
    assert json.loads(Path(said["folder"], "scores.json").read_text())["model"]["kind"] == "pipeline"


def test_files_for_other_tools_and_smaller_pictures(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('file_name,text\n1.jpg,a red shoe\n2.jpg,"a bag, half/half"\n3.jpg,a cat\n')
    said = evaluated(
        judged, "--prompts", "p.csv", "--exclude", "cat", "--resize", 32, "--write-pictures", "out", "--out", "here"
    )
    assert sorted(p.name for p in Path("out").iterdir()) == ["a bag, half half_000001.png", "a red shoe_000000.png"]
    kept = load_file("here/pictures-00000.safetensors")["pictures"]
    assert kept.shape == (2, 3, 32, 32) and said["identity"]["drawn_size"] == [64, 64]
    with Image.open("out/a red shoe_000000.png") as image:
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), kept[0].numpy())
    full = evaluated(judged, "--prompts", "p.csv", "--exclude", "cat", "--out", "full")
    whole = Image.fromarray(load_file("full/pictures-00000.safetensors")["pictures"][0].permute(1, 2, 0).numpy())
    smaller = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(kept[0].numpy(), smaller)
    assert full["folder"] == "full"


# several processes, and killed ones


def _evaluate(teacher: Path, folder: Path, kill_at: int | None = None) -> None:
    """What the command does, in shards of 5; killed by itself once so many things are done."""
    torch.set_num_threads(1)
    source, scorer = (
        open_source(str(teacher), device="cpu"),
        open_scorer(["judge"], Weights(judge=teacher / "judge"), size=(64, 64)),
    )
    reports = iter(range(1000))

    def progress(_stage: str, _done: int, _of: int) -> None:
        if next(reports) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    pictures = open_set(folder, PAIRED, {"a": 1}, size=(64, 64), shard_size=5, batch_size=3)
    settings = {"num_inference_steps": 2, "guidance_scale": 7.5}
    evaluate(pictures, source.drawing, scorer, seed=0, settings=settings, progress=progress)


@pytest.fixture(scope="module")
def uninterrupted(judged: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "set"
    _evaluate(judged, folder)
    found = shards(folder)
    assert len(found) == 8, "four shards of pictures, and what the judge reads in them"
    return found


@pytest.mark.parametrize("at", [2, 7, 15])
def test_a_killed_process_changes_nothing(
    judged: Path, tmp_path: Path, uninterrupted: dict[str, bytes], at: int
) -> None:
    worker = FORK.Process(target=_evaluate, args=(judged, tmp_path / "set", at))
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    whole = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").glob("*.safetensors")}
    assert len(whole) < 8
    _evaluate(judged, tmp_path / "set")
    assert shards(tmp_path / "set") == uninterrupted
    assert {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in whole} == whole, "whole shards are kept"
    assert not list((tmp_path / "set").glob("*.claim"))


def test_two_processes_share_a_folder(judged: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    workers = [FORK.Process(target=_evaluate, args=(judged, tmp_path / "set")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [w.exitcode for w in workers] == [0, 0]
    assert shards(tmp_path / "set") == uninterrupted
    assert not list((tmp_path / "set").glob("*.claim"))


def test_a_truncated_shard_is_made_anew(judged: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    _evaluate(judged, tmp_path / "set")
    for name in ("pictures-00002.safetensors", next(n for n in uninterrupted if n.startswith("judge-"))):
        file = tmp_path / "set" / name
        file.write_bytes(file.read_bytes()[:-7])
    _evaluate(judged, tmp_path / "set")
    assert shards(tmp_path / "set") == uninterrupted


# runs


def trained(recipe: Recipe) -> Run:
    return distill(recipe, Path("runs/tiny"), lambda *_: None, lambda _text: None)


def lines_with(name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_run_scores_itself_and_is_evaluated_by_its_recipe(
    tiny_recipe: RecipeOf, judged: Path, captions: Path
) -> None:
    scored = {"every": 3, "score": "judge", "count": 12, "prompt_files": [str(captions)]}
    run = trained(tiny_recipe(teacher={"path": str(judged)}, evaluate=scored))
    found = lines_with("judge.all")
    assert set(found) == {3, 6} and lines_with("validation").keys() == found.keys()
    best = max(found, key=lambda step: (found[step], -step))
    assert run.best == (found[best], best)
    facts = Manifest.read(Path("runs/tiny"), "run").facts
    assert (facts["best_step"], facts["best_score"], facts["score"]) == (best, found[best], "judge.all")
    assert facts["pipeline_step"] == 6
    assert not list(Path("runs/tiny/evaluations").iterdir()), "scored pictures are not kept"

    said = evaluated()  # the newest run, its prompts, its count, its judge
    assert said["model"]["kind"] == "run" and said["counts"] == {"all": 12}
    assert said["scores"]["all"]["judge.all"] == pytest.approx(found[6], abs=1 / 12), "the pipeline is stored in half"

    for at, step in (("3", 3), ("last", 6), ("best", best)):
        from_checkpoint = evaluated("runs/tiny", "--checkpoint", at)
        assert from_checkpoint["model"]["step"] == step
        assert from_checkpoint["scores"]["all"]["judge.all"] == found[step], "the very same pictures"
    with pytest.raises(RcdeployError, match="has no checkpoint '5'") as caught:
        evaluated("runs/tiny", "--checkpoint", "5")
    assert "3, " in str(caught.value.fix)


def test_two_processes_of_a_training_draw_together(
    recipe_file: Callable[..., Path], tiny_recipe: RecipeOf, judged: Path
) -> None:
    changes = {
        "teacher": {"path": str(judged)},
        "train": {"max_steps": 2, "adam_eps": 1e-2, "learning_rate": 1e-6},
        "evaluate": {"every": 1, "score": "judge", "count": 12},
    }
    trained(tiny_recipe(**changes))
    one = lines_with("judge.all")
    options = {"--num_processes": "2", "--num_machines": "1", "--mixed_precision": "no", "--main_process_port": "0"}
    launch = ["-m", "accelerate.commands.launch", "--cpu", *(word for pair in options.items() for word in pair)]
    command = ["-m", "rcdeploy.cli.main", "distill", str(recipe_file(**changes)), "--out", "runs/two", "-q"]
    done = subprocess.run([sys.executable, *launch, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree("runs/tiny")
    Path("runs/two").rename("runs/tiny")
    assert lines_with("judge.all") == pytest.approx(one, abs=1 / 12 + 1e-6), "one picture may tip by rounding"
    assert not list(Path("runs/tiny/evaluations").iterdir())


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_step_can_become_the_pipeline(
    tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(Validator, "validation_loss", lambda *_: next(losses))
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
    run = trained(tiny_recipe(teacher=teacher, train={"max_steps": 4}, evaluate={"every": 2, "score": "judge"}))
    assert run.best is not None and run.best[1] == 4, "a validation loss is not compared with an accuracy"


@pytest.mark.parametrize(
    ("figure", "better", "worse"),
    [("validation", 1.0, 2.0), ("fid", 10.0, 20.0), ("judge.all", 0.9, 0.1)],
)
def test_which_way_is_better(figure: str, better: float, worse: float) -> None:
    assert metrics.better(figure, better, worse) and not metrics.better(figure, worse, better)
    assert not metrics.better(figure, better, better), "the earlier step stays the best"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"score": "fid"}, "evaluate.inception: score = 'fid' needs it"),
        ({"score": "fid"}, "evaluate.reference: score = 'fid' needs it"),
        ({"score": "fid", "count": 2048}, "evaluate.count: score = 'fid' needs more than 2048"),
        ({"score": "judge", "every": 2}, "has no judge/"),
        ({"score": "fis"}, "did you mean 'fid'"),
        ({"keep": "best"}, "evaluate.every: 0 evaluates nothing"),
        ({"inception": "inception.safetensors"}, "inception.safetensors does not exist"),
        ({"prompt_files": ["gone.txt"]}, "gone.txt does not exist"),
    ],
)
def test_contradictions_in_a_recipe(recipe_file: Callable[..., Path], keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RcdeployError) as caught:
        load_recipe(recipe_file(evaluate=keys))
    assert said in caught.value.message


def test_prompts_that_the_judge_cannot_read(tiny_recipe: RecipeOf, judged: Path, tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text("a cat\n")
    recipe = tiny_recipe(
        teacher={"path": str(judged)}, evaluate={"every": 2, "score": "judge", "prompt_files": ["cats.txt"]}
    )
    with pytest.raises(RcdeployError, match="can read nothing"):
        trained(recipe)


# FID and IS


def test_fid_and_is_of_a_few_pictures(judged: Path, captions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights: the way is tested here, the numbers in test_scores.py."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("user").resolve()))
    save_file(seeded_inception().state_dict(), "inception.safetensors")
    common = [judged, "--prompts", captions, "--count", 4, "--inception", "inception.safetensors"]
    with pytest.raises(RcdeployError, match="fid needs a reference"):
        evaluated(*common, "--metrics", "fid")
    first = evaluated(*common, "--metrics", "is", "--write-pictures", "real")
    assert set(first["scores"]["all"]) == {"is", "is_deviation"}
    with pytest.raises(RcdeployError, match=r"4 pictures are too few for an FID of 2,048 features") as caught:
        evaluated(*common, "--metrics", "fid,is", "--reference", "real")
    assert "2,049" in str(caught.value.fix)
    same = evaluated(*common, "--metrics", "fid,is", "--reference", "real", "--allow-few")
    assert same["seconds"]["pictures_drawn"] == 0
    assert same["scores"]["all"]["fid"] == pytest.approx(0, abs=1e-3), "the same pictures"
    assert same["scores"]["all"]["is"] == first["scores"]["all"]["is"]
    assert same["weights"]["reference"]["count"] == 4
    other = evaluated(*common, "--reference", "real", "--allow-few", "--seed", 3, "--metrics", "fid")
    assert other["scores"]["all"]["fid"] > 1e-3
    everything = evaluated(*common, "--reference", "real", "--allow-few")
    assert {"fid", "is", "judge.item"} <= set(everything["scores"]["all"]), "all that can be had"


# bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing-of-the-kind"], "is no file or folder here"),
        (["c-micro"], "it has no weights"),
        (["TEACHER"], "no prompts to draw"),
        (["TEACHER", "--prompts", "gone.txt"], "gone.txt does not exist"),
        (["TEACHER", "--prompts", "table.csv"], "has none of the columns"),
        (["TEACHER", "--prompts", "table.csv", "--column", "b"], "no column 'b'"),
        (["TEACHER", "--prompts", "captions.txt", "--count", "21"], "21 prompts were asked for, .* has 20 to draw"),
        (["TEACHER", "--prompts", "captions.txt", "--include", "cat"], "no caption passes"),
        (["TEACHER", "--prompts", "captions.txt", "--include", "("], "is no regular expression"),
        (["TEACHER", "--prompts", "captions.txt", "--split", "cats.txt"], "no prompt has one of its words"),
        (["TEACHER", "--prompts", "captions.txt", "--split", "gone.txt"], "gone.txt cannot be read"),
        (["TEACHER", "--prompts", "captions.txt", "--metrics", "fid"], "fid needs the weights of Inception-v3"),
        (["TEACHER", "--prompts", "captions.txt", "--metrics", "clip"], "clip needs a CLIP model"),
        (["TEACHER", "--prompts", "captions.txt", "--metrics", "lpips"], "there is no metric 'lpips'"),
        (["TEACHER", "--prompts", "captions.txt", "--clip", "empty", "--metrics", "clip"], "holds no CLIP model"),
        (["TEACHER", "--prompts", "captions.txt", "--judge", "empty"], "holds no judge"),
        (["TEACHER", "--prompts", "captions.txt", "--inception", "gone.safetensors"], "no weights of Inception-v3 at"),
        (["TEACHER", "--prompts", "captions.txt", "--reference", "gone"], "nothing is there"),
        (["TEACHER", "--prompts", "captions.txt", "--resize", "128"], "would enlarge pictures of 64x64"),
        (["TEACHER", "--prompts", "captions.txt", "--device", "abacus"], "torch has no device 'abacus'"),
        (["TEACHER", "--prompts", "captions.txt", "--checkpoint", "best"], "is no run folder"),
        (["TEACHER", "--prompts", "captions.txt", "--out", "other"], "holds other pictures"),
    ],
)
def test_what_a_user_can_mend_is_said(
    judged: Path, captions: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "table.csv").write_text("a,c\n1,2\n")
    (tmp_path / "cats.txt").write_text("cat\n")
    (tmp_path / "empty").mkdir()
    if "other" in arguments:
        open_set(tmp_path / "other", ["a cat"], {"model": "x"}, size=(8, 8), shard_size=1, batch_size=1)
    with pytest.raises(RcdeployError, match=said):
        result = CliRunner().invoke(app, ["evaluate", *(str(judged) if a == "TEACHER" else a for a in arguments)])
        assert result.exception is not None, result.output
        raise result.exception
    assert not list(tmp_path.rglob("pictures-*")), "nothing was drawn"


def test_without_weights_it_says_which_to_name(tiny_teacher: Path, captions: Path) -> None:
    with pytest.raises(RcdeployError, match="no metric can be had without weights") as caught:
        evaluated(tiny_teacher, "--prompts", captions)
    for word in ("--inception", "--clip", "--judge"):
        assert word in caught.value.message
    assert "pytorch-fid" in str(caught.value.fix)


def test_a_run_whose_prompts_are_gone_takes_its_caches(tiny_recipe: RecipeOf, judged: Path, tmp_path: Path) -> None:
    trained(tiny_recipe(teacher={"path": str(judged)}, train={"max_steps": 1}))
    assert evaluated()["counts"] == {"all": 20}, "all captions, also those without a latent"
    (tmp_path / "paired.txt").unlink()
    assert evaluated()["counts"] == {"all": 12}
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RcdeployError, match=r"paired\.txt of its recipe is not there"):
        evaluated()


def test_clip_scores(judged: Path, captions: Path, clip: Path) -> None:  # noqa: F811
    said = evaluated(judged, "--prompts", captions, "--count", 3, "--clip", clip, "--metrics", "clip,judge")
    assert -1 <= said["scores"]["all"]["clip"] <= 1 and "judge.item" in said["scores"]["all"]


def test_no_run_is_there(captions: Path) -> None:
    with pytest.raises(RcdeployError, match="no finished run"):
        evaluated("--prompts", captions)
