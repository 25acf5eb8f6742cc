"""The costs and timings of models: counted as the paper does, and timed to the end by real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import listing
from test_macs import SD14_ROWS
from test_model_folder import describe
from typer.testing import CliRunner

from rcdeploy.bench import latency
from rcdeploy.bench.costs import image_macs
from rcdeploy.bench.latency import Settings, bench, ratio, summary
from rcdeploy.bench.worker_process import WorkerProcess
from rcdeploy.cli.bench import SAME, pipe_table, tables
from rcdeploy.cli.main import app
from rcdeploy.model_description import TORCH_BACKENDS, ModelDescription
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

run = CliRunner().invoke


def quiet(*_: Any) -> None:
    pass


def toy_student(model: Path) -> ModelDescription:
    """A student by name has no folder; this one is small enough to be built with random weights in a test."""
    configs = {name: read_json(model / name / "config.json") for name in ("unet", "text_encoder", "vae")}
    return ModelDescription("toy", "student", "toy", None, configs, None, (64, 64), 8, TORCH_BACKENDS)


# what it costs


def test_students_cost_what_the_paper_says() -> None:
    names = [name if name != "teacher" else "sd-1.4" for name in SD14_ROWS]
    result = bench(describe(names), Settings(time=False), quiet)
    for row, (count, thop, total) in zip(result["subjects"], SD14_ROWS.values(), strict=True):
        unet = row["components"]["unet"]
        assert unet["parameters"] == count
        assert (round(unet["macs_thop"] / 1e9, 2), round(unet["macs"] / 1e9, 2)) == (thop, total)
        assert row["components"]["text_encoder"]["parameters"] == 123_060_480
        assert row["components"]["vae_decoder"]["parameters"] == 49_490_199
        assert row["backends"] == {}


def test_an_image_costs_its_calls() -> None:
    parts = {
        name: {"macs_thop": macs, "macs": 10 * macs}
        for name, macs in (("text_encoder", 1), ("unet", 100), ("vae_decoder", 7))
    }
    assert image_macs(parts, 25, 7.5) == {"macs_thop": 2 * 1 + 50 * 100 + 7, "macs": 10 * (2 * 1 + 50 * 100 + 7)}
    assert image_macs(parts, 4, 1.0)["macs_thop"] == 1 + 400 + 7


def test_impossible_sizes_are_errors(small_model: Path) -> None:
    (model,) = describe([str(small_model)])
    assert model.latent_size((64, 128)) == (8, 16)
    for settings in (Settings(size=(60, 64), time=False), Settings(sizes=((64, 0),), time=False)):
        with pytest.raises(RcdeployError, match="multiples of 8 pixels"):
            bench([model], settings, quiet)
    static = ModelDescription(**{**vars(model), "is_static": True})
    with pytest.raises(RcdeployError, match="64x64 pixels only"):
        static.latent_size((128, 128))


# times


def test_the_ratio_of_overlapping_timings_is_none() -> None:
    slow, fast = summary([2.0, 2.1, 2.2]), summary([1.0, 1.1, 1.2])
    assert ratio(fast, slow) == pytest.approx(1.1 / 2.1)
    assert ratio(summary([1.0, 1.1, 2.3]), slow) is None
    assert ratio(slow, summary([1.9, 2.0, 2.15])) is None
    odd = summary([1.0] * 20 + [9.0])  # one outlier is no spread
    assert (odd["median"], odd["p90"], odd["max"], odd["runs"]) == (1.0, 1.0, 9.0, 21)
    assert ratio(odd, slow) == pytest.approx(1 / 2.1)


@pytest.mark.parametrize(
    "settings, match",
    [({"runs": 2}, "at least 3"), ({"num_inference_steps": 0}, "steps"), ({"backends": ("tf",)}, "tf")],
)
def test_settings_that_measure_nothing_are_errors(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(RcdeployError, match=match):
        Settings(**settings)


def test_backends_are_checked_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, small_model: Path, package: Path
) -> None:
    monkeypatch.setattr(latency, "_measure", lambda *_: pytest.fail("a process was started"))
    model, packed = describe([str(small_model), str(package)])
    with pytest.raises(RcdeployError, match="onnxruntime, not on torch"):
        bench([packed], Settings(backends=("torch",)), quiet)
    with pytest.raises(RcdeployError, match="none of the models runs on openvino"):
        bench([model], Settings(backends=("torch", "openvino")), quiet)
    monkeypatch.setattr(latency.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RcdeployError, match="onnxruntime is not installed") as caught:
        bench([packed], Settings(), quiet)
    assert "pip install" in (caught.value.fix or "")


@pytest.fixture(scope="module")
def timed(small_model: Path, package: Path) -> dict[str, Any]:
    """A folder in torch, a student of random weights, a package; a folder's files are the same afterwards."""
    subjects = [*describe([str(small_model)]), toy_student(small_model), *describe([str(package)])]
    before = listing(small_model) | listing(package)
    settings = Settings(sizes=((64, 128),), num_inference_steps=2, runs=3, threads=1, device="cpu", random_weights=True)
    seen: list[tuple[Any, ...]] = []
    result = bench(subjects, settings, lambda *report: seen.append(report))
    assert listing(small_model) | listing(package) == before
    assert seen[0] == ("loading", 0, 3) and seen[-1] == ("timing", 4, 4)
    return result


def test_everything_is_timed(timed: dict[str, Any]) -> None:
    assert [list(s["backends"]) for s in timed["subjects"]] == [["torch"], ["torch"], ["onnxruntime"]]
    for subject in timed["subjects"]:
        (measurement,) = subject["backends"].values()
        assert set(measurement["timings"]) == {"text_encoder", "unet", "vae_decoder", "image"}
        assert set(measurement["sizes"]) == {"64x128"} and set(measurement["sizes"]["64x128"]) == {
            "unet",
            "vae_decoder",
        }
        for timing in (*measurement["timings"].values(), *measurement["sizes"]["64x128"].values()):
            assert 0 < timing["min"] <= timing["p10"] <= timing["median"] <= timing["p90"] <= timing["max"]
            assert timing["runs"] == 3
        assert measurement["gmacs_per_second"] * 1e9 * measurement["timings"]["image"]["median"] == pytest.approx(
            subject["image"]["macs"]
        )
        assert measurement["share_of_gemm"] > 0 and measurement["device"] == "cpu"
        assert min(measurement["import_seconds"], measurement["load_seconds"], measurement["first_image_seconds"]) > 0
    assert timed["settings"] == {
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "guidance_scale": 7.5,
        "sampler": "ddim",
        "threads": 1,
        "device": "cpu",
    }
    json.dumps(timed)


def test_memory_is_of_the_process_alone(timed: dict[str, Any]) -> None:
    """The package's process has no torch, and does not inherit the peak of this one, which has."""
    model, _, packed = (next(iter(s["backends"].values()))["peak_memory_bytes"] for s in timed["subjects"])
    assert 20e6 < packed < model / 2


def test_a_package_is_timed_without_torch() -> None:
    code = (
        "import sys, importlib; from rcdeploy.bench.latency_worker import IMPORTS\n"
        "for name in IMPORTS['onnxruntime']: importlib.import_module(name)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tables_mark_timings_within_the_spread(timed: dict[str, Any]) -> None:
    result = json.loads(json.dumps(timed))
    first, second, third = (next(iter(s["backends"].values()))["timings"] for s in result["subjects"])
    first["image"] = summary([1.0, 1.1, 1.2])
    second["image"], third["image"] = summary([1.1, 1.15, 1.3]), summary([0.5, 0.55, 0.6])
    (_, costs), (title, times), (_, processes) = tables(result)
    relative = [row["x"] for row in times if row["part"] == "image"]
    assert relative == [1.0, SAME, pytest.approx(0.5)]
    assert "threads: 1, runs: 3" in title and "cpu" in title and "same: within the spread" in title
    assert len(costs) == 12 and len(processes) == 3 and len(times) == 18
    lines = pipe_table(times).splitlines()
    assert len(lines) == 20 and len({line.count("|") for line in lines}) == 1


def test_a_failing_process_reports_why(tmp_path: Path, small_model: Path) -> None:
    lacks = shutil.copytree(small_model, tmp_path / "lacks")
    subjects = describe([str(lacks)])
    shutil.rmtree(lacks / "tokenizer")
    (lacks / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(RcdeployError, match="lacks on torch: .*unet cannot be loaded"):
        bench(subjects, Settings(num_inference_steps=1, runs=3, threads=1), quiet)
    task = {"backend": "nonsense", "threads": 1}
    failure = pytest.raises(RcdeployError, match="(?s)a toy: .*exited with code 1.*KeyError: 'nonsense'")
    with failure, WorkerProcess.start("a toy", task) as worker:
        worker.process.wait()
        worker.seconds("unet", (8, 8))  # it has exited already: its log is reported all the same


# the command


def test_what_is_counted_is_the_same_every_time(small_model: Path) -> None:
    arguments = ["bench", str(small_model), "c-micro", "--no-time", "--json", "--size", "64x128"]
    first, second = (json.loads(run(app, arguments).stdout) for _ in range(2))
    assert first["subjects"] == second["subjects"]
    assert (first["settings"]["height"], first["settings"]["width"]) == (64, 128)


def test_markdown_is_a_pipe_table() -> None:
    result = run(app, ["bench", "sd-1.4", "c-micro", "--no-time", "--markdown"])
    assert "| c-micro | UNet | 219,789,284 | 0.26 |  | 85.11 | 116.56 | 0.29 |" in result.stdout.splitlines()
    assert "| sd-1.4 | UNet | 859,520,964 | 1.00 |  | 338.75 | 401.64 | 1.00 |" in result.stdout.splitlines()


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--size", "64"], "HxW"),
        (["--sizes", "64x64,axb"], "HxW"),
        (["--markdown", "--json"], "exclude"),
        (["--size", "100x100", "--no-time"], "multiples of 8"),
    ],
)
def test_bad_options_are_errors(arguments: list[str], match: str) -> None:
    error = run(app, ["bench", "c-micro", *arguments]).exception
    assert isinstance(error, RcdeployError) and match in error.message


def test_named_students_are_timed_with_random_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_measure", lambda *_: pytest.fail("a process was started"))
    result = run(app, ["bench", "c-micro"])
    assert result.exit_code == 0 and "--random-weights" in result.stderr


def test_a_busy_machine_is_reported_in_text_and_json(
    monkeypatch: pytest.MonkeyPatch, timed: dict[str, Any], small_model: Path
) -> None:
    measurement = timed["subjects"][0]["backends"]["torch"]
    monkeypatch.setattr(latency, "_measure", lambda *_: [json.loads(json.dumps(measurement))])
    monkeypatch.setattr(latency, "gemm_rate", lambda _threads: 1e9)
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 99.0, 99.0))
    result = run(app, ["bench", str(small_model), "--json"])
    (warning,) = json.loads(result.stdout)["warnings"]
    assert "busy (load 99.0" in warning
    assert warning in run(app, ["bench", str(small_model)]).stderr.replace("\n", " ")
    assert json.loads(run(app, ["bench", str(small_model), "--no-time", "--json"]).stdout)["warnings"] == []
