"""Bad input: one clear panel on stderr, exit code 2, and nothing changes on disk."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import listing
from safetensors.torch import load_file, save_file

from rcdeploy.cli import main as cli
from rcdeploy_runtime.errors import RcdeployError

RecipeFile = Callable[..., Path]


@pytest.fixture
def error_of(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that must fail on its input; returns the text of its panel on one line."""

    def run(*arguments: object) -> str:
        before = listing(tmp_path)
        monkeypatch.setattr(sys, "argv", ["rcdeploy", *map(str, arguments)])
        monkeypatch.setattr("rcdeploy.cli.console.err.width", 200, raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        assert caught.value.code == 2, printed
        assert printed.out == "" and printed.err.count("╭─ rcdeploy") == 1 and "Traceback" not in printed.err
        assert listing(tmp_path) == before
        return " ".join(printed.err.replace("│", " ").split())

    return run


def test_missing_and_foreign_teachers(recipe_file: RecipeFile, error_of: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no folder" in error_of("distill", recipe_file(teacher={"path": "nowhere"}))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not in diffusers' layout" in error_of("distill", recipe_file(teacher={"path": "empty"}))
    assert "is not in diffusers' layout" in error_of("students", "--teacher", empty)
    (empty / "unet").mkdir()
    (empty / "model_index.json").write_text("{}")
    (empty / "unet/config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    assert "is a SD3Transformer2DModel" in error_of("distill", recipe_file(teacher={"path": "empty"}))


def test_a_student_that_does_not_fit(recipe_file: RecipeFile, error_of: Callable[..., str]) -> None:
    assert "KOALA is for SDXL teachers" in error_of("distill", recipe_file(student={"name": "koala-700m"}))


def test_first_weights_that_cannot_fit(
    recipe_file: RecipeFile, error_of: Callable[..., str], tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "uneven"))
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "block_out_channels": [8, 8, 16, 32]}))
    text = error_of("recipes", "check", recipe_file(teacher={"path": "uneven"}, student={"name": "b-tiny"}))
    assert "without the teacher's innermost stage" in text and "use init = 'random'" in text


def test_an_empty_prompt_pool(recipe_file: RecipeFile, error_of: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()  # the folder that the cache would get is there already, and stays empty
    assert "empty" in error_of("distill", recipe_file(prompts={"paired_exclude": ["a"]}))


def test_the_run_of_another_recipe(recipe_file: RecipeFile, error_of: Callable[..., str], tmp_path: Path) -> None:
    file = recipe_file(train={"max_steps": 1})
    run_quietly("distill", file, tmp_path)
    text = error_of("distill", file, "--set", "train.learning_rate=0.5", "--set", "student.init=sliced")
    assert "train.learning_rate: 0.001 -> 0.5" in text and "student.init: None -> sliced" in text
    assert "--restart" in text
    assert "is a latent_cache, not a run" in error_of("distill", file, "--restart", "--out", tmp_path / "cache")


def run_quietly(command: str, file: Path, cwd: Path, *more: str) -> None:
    arguments = [sys.executable, "-m", "rcdeploy.cli.main", command, str(file), "--quiet", *more]
    subprocess.run(arguments, check=True, cwd=cwd, env=dict(os.environ))


def test_nan_weights(recipe_file: RecipeFile, tiny_teacher: Path, error_of: Callable[..., str], tmp_path: Path) -> None:
    run_quietly("cache", recipe_file(), tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_teacher, broken)
    weights = load_file(broken / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, broken / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    file = recipe_file(teacher={"path": str(broken)}, cache={"folder": "cache2"})
    assert "NaN or infinite weights: conv_in.weight" in error_of("cache", file)


def test_a_config_of_the_wrong_type(
    recipe_file: RecipeFile, tiny_teacher: Path, error_of: Callable[..., str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "wrong"))
    config = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(json.dumps({**config, "hidden_size": "many"}))
    assert "text_encoder cannot be loaded" in error_of("distill", recipe_file(teacher={"path": "wrong"}))


def test_a_full_disk_leaves_nothing_half_done(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rcdeploy.cache_latents import make_latent_cache
    from rcdeploy.diffusion_model import LatentDiffusionModel
    from rcdeploy.latent_cache import CacheFolder
    from rcdeploy.recipe_file import load_recipe
    from rcdeploy.storage import tensors

    real, calls = tensors.save_file, []

    def disk_with_room_for_one(data: dict, path: Path, metadata: dict | None = None) -> None:
        calls.append(path)
        if len(calls) > 1:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(data, path, metadata)

    monkeypatch.setattr(tensors, "save_file", disk_with_room_for_one)
    recipe = load_recipe(recipe_file())
    with pytest.raises(RcdeployError, match="No space left on device"):
        make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path))
    folder = tmp_path / "cache"
    assert CacheFolder.read(folder).missing() == [1, 2]
    assert not [p for p in folder.rglob("*") if ".part" in p.name or p.name.endswith(".claim")]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert len(make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path))) == 12


def test_options_that_are_not_there(error_of: Callable[..., str]) -> None:
    done = subprocess.run([sys.executable, "-m", "rcdeploy.cli.main", "distil"], capture_output=True, text=True)
    assert done.returncode == 2 and "No such command" in done.stderr
    assert "there is no recipe" in error_of("distill", "nowhere.toml")


def test_help_loads_no_torch() -> None:
    code = "import sys; sys.argv = ['rcdeploy', '--help']\nfrom rcdeploy.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
