"""How a model wants to be sampled: recorded by runs, taken over by packages, and followed by whoever uses them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import listing
from typer.testing import CliRunner

from rcdeploy.cli.bench import tables
from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.evaluation import identity_of
from rcdeploy.evaluate.target import EvaluationTarget
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package_files import package_manifest
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.files import read_json, write_json
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

FEW_STEPS = {"sampler": "tcd", "num_inference_steps": 2, "guidance_scale": 1.0}


def recording(package: Path, folder: Path, **facts: Any) -> Path:
    """A copy of the package whose manifest has these facts too."""
    shutil.copytree(package, folder)
    manifest = read_json(folder / NAME)
    manifest["facts"] |= facts
    write_json(folder / NAME, manifest)
    return folder


@pytest.fixture
def few_steps(package: Path, tmp_path: Path) -> Path:
    return recording(package, tmp_path / "few-steps", sampling=FEW_STEPS)


def sampling_of(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in FEW_STEPS}


def test_a_package_is_sampled_as_its_manifest_says(few_steps: Path) -> None:
    model = TextToImage.load(few_steps, threads=1)
    calls: list[float] = []
    _, record = model.generate("a bag", seed=1, callback=lambda step: calls.append(step.timestep))
    assert sampling_of(record) == FEW_STEPS and calls == [999, 499]
    _, record = model.generate("a bag", seed=1, sampler="dpm++", num_inference_steps=1, guidance_scale=3.0)
    assert sampling_of(record) == {"sampler": "dpm++", "num_inference_steps": 1, "guidance_scale": 3.0}


def test_an_old_package_is_sampled_as_before(package: Path, tmp_path: Path) -> None:
    model = TextToImage(recorded_nothing := Package(package))
    assert recorded_nothing.facts.sampling is None
    _, record = model.generate("a bag", seed=1)
    assert sampling_of(record) == {"sampler": "ddim", "num_inference_steps": 25, "guidance_scale": 7.5}


def test_more_steps_than_a_model_was_made_for_are_a_warning(few_steps: Path) -> None:
    model = TextToImage.load(few_steps, threads=1)
    with pytest.warns(UserWarning, match="made for 2 steps; 3 take longer"):
        _, record = model.generate("a bag", seed=1, num_inference_steps=3)
    assert record["num_inference_steps"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("a bag", seed=1, num_inference_steps=1)
    assert SamplingDefaults(num_inference_steps=25).remark(50) is None  # any number is fine for DDIM
    assert SamplingDefaults(num_inference_steps=4, guidance_scale=4.0).remark(50) is None
    assert SamplingDefaults(num_inference_steps=2, guidance_scale=1.0).remark(4)  # distilled for a few of DDIM's
    result = CliRunner().invoke(app, ["generate", str(few_steps), "a bag", "--steps", "3", "--seed", "1"])
    assert result.exit_code == 0 and result.stderr.count("made for 2 steps") == 1


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"num_inference_steps": 0}, "sampling.num_inference_steps: 0"),
        ({"num_inference_steps": 10**9}, "sampling.num_inference_steps: 1000000000"),
        ({"guidance_scale": -1}, "sampling.guidance_scale: -1"),
        ({"num_inference_steps": "2"}, "sampling.num_inference_steps: expected a whole number"),
    ],
)
def test_a_package_with_impossible_defaults_is_refused(
    package: Path, tmp_path: Path, sampling: dict[str, Any], message: str
) -> None:
    with pytest.raises(RcdeployError) as error:
        Package(recording(package, tmp_path / "wrong", sampling=sampling))
    assert message in str(error.value)


def test_an_unknown_sampler_is_named_and_another_may_be_chosen(package: Path, tmp_path: Path) -> None:
    model = TextToImage.load(recording(package, tmp_path / "newer", sampling={"sampler": "dream"}), threads=1)
    with pytest.raises(RcdeployError, match="sampler is 'dream'"):
        model.generate("a bag")
    model.generate("a bag", sampler="ddim", num_inference_steps=1)


@pytest.mark.parametrize("sampler", ["tcd", "lcm", "dpm++", "euler_ancestral", "ddim"])
def test_torch_and_the_runtime_sample_the_same_image(package: Path, small_model: Path, sampler: str) -> None:
    """Also where fresh noise is added, whatever the batches."""
    model = LatentDiffusionModel(str(small_model))
    prompts, seeds = ["a red bag", "a coat", "a shoe"], [5, 6, 7]
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": sampler}
    noise = runtime_noise(model, seeds, (64, 64))
    ours = sample_images(model, prompts, noise, seeds=seeds, batch_size=2, **settings)
    theirs, _ = TextToImage.load(package, threads=1).generate(prompts, seed=5, **settings)
    for image, expected in zip(ours, theirs, strict=True):
        pixels = (image.movedim(0, -1).numpy() * 255).round()
        assert np.abs(pixels - np.asarray(expected)).max() <= 1


def test_evaluation_and_bench_take_the_models_own(few_steps: Path, package: Path) -> None:
    spec = EvaluationTarget.of(resolve(few_steps)).default_spec()
    assert spec.sampling == {"sampler": "tcd", "num_inference_steps": 2, "guidance_scale": 1.0}
    assert identity_of("digest", (64, 64), ["a"], spec)["sampler"] == "tcd"
    assert describe_model(resolve(few_steps)).sampling == SamplingDefaults(**FEW_STEPS)
    old = EvaluationTarget.of(resolve(package)).default_spec()  # its folder's name must stay what it was
    assert "sampler" not in identity_of("digest", (64, 64), ["a"], old)
    result = CliRunner().invoke(app, ["bench", str(package), str(few_steps), "--no-time", "--json"])
    bench = json.loads(result.stdout)
    costs = [subject["image"]["macs"] for subject in bench["subjects"]]
    assert bench["settings"]["num_inference_steps"] is None and costs[0] > 5 * costs[1]
    title, rows = tables(bench)[0]
    assert "each model's own steps and guidance" in title and "image, 2 steps" in [row["part"] for row in rows]


def test_export_takes_the_runs_sampling_or_what_is_asked_for(small_model: Path, package: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_model, run / "pipeline")
    recipe = {"teacher": {"path": str(small_model)}}
    Manifest(kind="run", recipe=recipe, facts={"sampling": FEW_STEPS}).write(run)
    source = ExportSource.open(run)
    model = source.load_model()
    facts = package_manifest(source, model, ExportOptions(), [], [], None, package).facts
    assert facts["sampling"] == FEW_STEPS
    asked = ExportOptions(sampling=SamplingDefaults("lcm", 4, 1.0))
    facts = package_manifest(ExportSource.open(small_model), model, asked, [], [], None, package).facts
    assert facts["sampling"] == {"sampler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}
    before = listing(tmp_path)
    for arguments, message in (
        (["--sampler", "dream"], "dream"),
        (["--sampler", "tcd", "--steps", "51"], "takes 1 to 50 steps"),
        (["--guidance-scale", "-1"], "--guidance-scale -1"),
    ):
        result = CliRunner().invoke(app, ["export", str(small_model), *arguments])
        assert isinstance(result.exception, RcdeployError) and message in str(result.exception)
    assert listing(tmp_path) == before
