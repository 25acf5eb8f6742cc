"""rcdeploy build: from captions to a package, stage by stage; finished stages stay, and the same command resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import listing
from typer.testing import CliRunner

from rcdeploy.cli import build_stages as module
from rcdeploy.cli.build_stages import Build, build_stages
from rcdeploy.cli.main import app
from rcdeploy.distill.loop import Stopped
from rcdeploy.progress import no_progress
from rcdeploy.recipe_file import load_recipe
from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.files import read_json, sha256, write_json
from rcdeploy_runtime.manifest import NAME, Manifest

RecipeFile = Callable[..., Path]
SHORT = {"train": {"max_steps": 2}, "distill": {"guidance_scale": 3.0}}
FEW = {"few_steps": {"max_steps": 2, "num_inference_steps": 2, "solver_steps": 1}}
DECODER = {"decoder": {"max_steps": 3}}


def build(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["build", *map(str, arguments), "--json"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def finished_before(record: dict[str, Any]) -> dict[str, bool]:
    return {stage["stage"]: stage["finished_before"] for stage in record["stages"]}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that ran; each leaves what its successor and is_finished look at, and trains nothing."""
    made: list[str] = []

    def distilled(build: Build, *_: Any) -> None:
        made.append("distill")
        weights = build.run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_text(f"weights {build.recipe.train.max_steps}")
        write_run(build.run, build, build.recipe.train.max_steps, [])

    def few_steps(build: Build, *_: Any) -> None:
        made.append("few_steps")
        assert build.recipe.few_steps
        weights = build.run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
        write_run(
            build.student,
            build,
            build.recipe.few_steps.max_steps,
            [{"kind": "distilled_student", "sha256": sha256(weights)}],
        )

    def decoder(build: Build, *_: Any) -> None:
        made.append("decoder")
        manifest = Manifest(kind="run", recipe=build.recipe.resolved(), facts={"finished": True})
        write_json((build.run / "decoder") / NAME, {**vars(manifest), "kind": "decoder"})

    def exported(build: Build, *_: Any) -> None:
        made.append("export")
        origins = [{"kind": "run", "sha256": sha256(build.student / NAME)}]
        if build.decoder:
            origins.append({"kind": "decoder", "sha256": Manifest.read(build.decoder, "decoder").digest})
        facts = {"export": build.export_options.as_facts()}
        Manifest(kind="package", made_from=origins, facts=facts).write(build.package)

    def reported(build: Build, *_: Any) -> None:
        made.append("report")
        (build.run / "report.html").write_text("page")

    monkeypatch.setattr(module, "_fill_cache", lambda *_: made.append("cache"))
    for name, stub in (
        ("_distill", distilled),
        ("_train_few_steps", few_steps),
        ("_train_decoder", decoder),
        ("_export", exported),
        ("_report", reported),
    ):
        monkeypatch.setattr(module, name, stub)
    return made


def write_run(folder: Path, build: Build, steps: int, made_from: list[dict[str, str]]) -> None:
    facts = {"student": "x", "init": "random", "steps": steps, "cache_folder": "", "machine": {}, "finished": True}
    (folder / "pipeline").mkdir(parents=True, exist_ok=True)
    write_json(folder / "pipeline" / "model_index.json", {})
    Manifest(kind="run", recipe=build.recipe.resolved(), facts=facts, made_from=made_from).write(folder)


def test_a_recipe_goes_all_the_way_to_a_package(recipe_file: RecipeFile) -> None:
    """The real stages; the package is sampled as its student was made to be, and decodes with the tiny decoder."""
    decoder = {"channels": 4, "max_steps": 2, "checkpoint_every": 1}
    file = recipe_file(**SHORT, **FEW, decoder=decoder, export={"encoder": False})
    record = build(file)
    assert list(finished_before(record)) == ["cache", "distill", "few_steps", "decoder", "export", "report"]
    assert not any(finished_before(record).values())
    assert record["student"] == "runs/tiny/few_steps" and record["package"] == "packages/tiny-onnx"
    package = Manifest.read(Path("packages/tiny-onnx"), "package")
    assert read_json(Path("packages/tiny-onnx/vae_decoder/config.json"))["_class_name"] == "AutoencoderTiny"
    assert not [name for name in package.files if name.startswith("vae_encoder")]
    assert package.facts["sampling"] == {"sampler": "ddim", "num_inference_steps": 2, "guidance_scale": 1.0}
    assert "2 DDIM steps, guidance 1" in Path("packages/tiny-onnx/README.md").read_text()
    assert "2 DDIM steps, guidance 1" in Path("runs/tiny/report.html").read_text()
    _, generated = TextToImage.load("packages/tiny-onnx", threads=1).generate("a red bag", seed=1)
    assert (generated["num_inference_steps"], generated["guidance_scale"]) == (2, 1.0)
    before = listing(Path("runs")) | listing(Path("packages"))
    assert all(finished_before(build(file)).values())
    assert listing(Path("runs")) | listing(Path("packages")) == before


def test_the_report_leaves_out_a_package_that_only_a_phone_opens(
    recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: dict[str, Path | None] = {}
    for format in ("onnx", "executorch", "coreml"):
        build = Build.of(load_recipe(recipe_file(**SHORT, export={"format": format})), None, None)

        def write_report(*args: Any, name: str = format) -> None:
            reported[name] = args[2].package

        monkeypatch.setattr("rcdeploy.report.page.write_report", write_report)
        module._report(build, no_progress)
    assert [package and package.name for package in reported.values()] == ["tiny-onnx", "tiny-executorch", None]


def test_stages_are_those_of_the_recipes_sections(recipe_file: RecipeFile) -> None:
    def names(**sections: Any) -> list[str]:
        recipe = load_recipe(recipe_file(**sections))
        return [stage.name for stage in build_stages(Build.of(recipe, None, None))]

    assert names() == ["cache", "distill", "report"]
    everything = ["cache", "distill", "few_steps", "decoder", "export", "report"]
    assert names(few_steps={}, decoder={}, export={}) == everything
    recipe = load_recipe(recipe_file(export={"format": "openvino", "precision": "bf16"}))
    assert Build.of(recipe, None, None).package == Path("packages/tiny-openvino-bf16")


def test_only_what_has_changed_runs_again(recipe_file: RecipeFile, calls: list[str]) -> None:
    file = recipe_file(**SHORT, **FEW, **DECODER, export={})
    build(file)
    assert calls == ["cache", "distill", "few_steps", "decoder", "export", "report"]
    for override, expected in (
        ([], []),
        (["--set", "export.static=true"], ["export", "report"]),
        (["--set", "decoder.max_steps=4"], ["decoder", "export", "report"]),
        (["--set", "few_steps.max_steps=3"], ["few_steps", "decoder", "export", "report"]),  # steps may grow
        (["--set", "train.max_steps=3", "--set", "few_steps.max_steps=3"], ["cache", "distill", "few_steps"]),
    ):
        calls.clear()
        build(file, *override)
        assert calls[: len(expected)] == expected and len(calls) >= len(expected), override


def test_until_only_and_restart(recipe_file: RecipeFile, calls: list[str]) -> None:
    file = recipe_file(**SHORT, **FEW, export={})
    with pytest.raises(RcdeployError, match="export needs distill and few_steps, which are not finished"):
        build(file, "--only", "export")
    assert calls == [] and not Path("runs").exists() and not Path("packages").exists()
    build(file, "--until", "distill")
    assert calls == ["cache", "distill"]
    calls.clear()
    record = build(file, "--only", "few_steps")
    assert calls == ["few_steps"] and record["package"] is None
    calls.clear()
    build(file, "--only", "few_steps", "--restart")
    assert calls == ["few_steps"]
    calls.clear()
    build(file)
    assert calls == ["export", "report"]
    for arguments, message in (
        (["--only", "decoder"], r"no section \[decoder\]"),
        (["--until", "everything"], "no such stage"),
        (["--until", "cache", "--only", "cache"], "exclude each other"),
    ):
        with pytest.raises(RcdeployError, match=message):
            build(file, *arguments)


def test_a_stopped_stage_is_resumed_by_the_same_command(
    recipe_file: RecipeFile, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_file(**SHORT, **FEW, export={})
    whole = module._train_few_steps

    def stop(*_: Any) -> None:
        raise Stopped("stopped after step 1")

    monkeypatch.setattr(module, "_train_few_steps", stop)
    result = CliRunner().invoke(app, ["build", str(file), "--quiet"])
    assert result.exit_code == 130 and "stopped after step 1" in result.stderr
    assert calls == ["cache", "distill"]
    monkeypatch.setattr(module, "_train_few_steps", whole)
    calls.clear()
    build(file)
    assert calls == ["few_steps", "export", "report"]


def test_what_would_fail_after_hours_fails_at_once(recipe_file: RecipeFile, tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    for sections, arguments, message in (
        ({"export": {"precision": "bf16"}}, [], "bf16"),
        ({"export": {"size": "64x64"}}, [], "export.size"),
        ({"export": {}}, ["--package-out", "taken"], "is not a package"),
        ({}, ["--out", "file"], "is a file"),
        ({"few_steps": {"num_inference_steps": 3}}, [], "3 does not divide the teacher's 1,000 timesteps"),
        ({"few_steps": {"steps": 3}}, [], "few_steps.steps"),
    ):
        with pytest.raises(RcdeployError) as error:
            build(recipe_file(**sections), *arguments)
        assert message in str(error.value), message
    assert calls == [] and not (tmp_path / "runs").exists()


def test_another_recipe_in_the_folder_is_refused(recipe_file: RecipeFile, calls: list[str]) -> None:
    build(recipe_file(**SHORT))
    with pytest.raises(RcdeployError, match="run of another recipe"):
        build(recipe_file(**SHORT), "--set", "train.learning_rate=0.5")
