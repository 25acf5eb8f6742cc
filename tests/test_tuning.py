"""rcdeploy tune: what executes a package fastest on this machine is measured, kept, and used by load."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import listing
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.__main__ import main
from rcdeploy_runtime.kept_tuning import SCHEMA_VERSION, Tuning, keep
from rcdeploy_runtime.limits import MAX_TUNING_BYTES
from rcdeploy_runtime.machine import physical_cores, this_machine, usable_cores, versions
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.session_options import SessionOptions
from rcdeploy_runtime.tuning import candidates, processes, search
from rcdeploy_runtime.tuning.outcome import keep_choice, text_table
from rcdeploy_runtime.tuning.search import NO_TIME, tune

DEFAULT = SessionOptions(backend="onnxruntime", device="cpu")
ONE_THREAD = replace(DEFAULT, threads=1)
OPENVINO = SessionOptions(backend="openvino", device="cpu")
BF16 = replace(OPENVINO, precision="bf16")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rcdeploy/tunings"


@pytest.fixture
def opened(package: Path) -> Package:
    return Package(package)


def tuning(package: Package, **changes: Any) -> Tuning:
    known = Tuning(SCHEMA_VERSION, package.digest, this_machine(), versions(), ONE_THREAD, 1.0, 2.0, 0.0)
    return replace(known, **changes)


class FakeProcess:
    """Answers at once that an image took `seconds[options]`, and has pixels of `grey[options]`."""

    seconds: dict[SessionOptions, float]
    grey: dict[SessionOptions, int]
    drawn: list[SessionOptions]
    running: int

    def __init__(self, folder: Path, options: SessionOptions, tick: Callable[[], None]) -> None:
        self.options = options
        type(self).running += 1

    def loaded(self, timeout: float) -> None:
        pass

    def draw(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.drawn.append(self.options)
        elapsed = self.seconds[self.options] * (1 + 0.01 * request["seed"])
        pixels = np.full(12, self.grey.get(self.options, 0), np.uint8)
        return {
            "image": base64.b64encode(pixels.tobytes()).decode(),
            "seconds": {"text": 0.0, "unet": elapsed * request["num_inference_steps"] / 25, "decode": 0.0},
            "elapsed": elapsed,
            "peak_memory_bytes": 10**6,
        }

    def close(self) -> None:
        type(self).running -= 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeProcess]]:
    """Candidates of given speeds: sets seconds to {options: seconds}, the default first."""
    FakeProcess.seconds, FakeProcess.grey, FakeProcess.drawn, FakeProcess.running = {DEFAULT: 1.0}, {}, [], 0
    monkeypatch.setattr(search, "CandidateProcess", FakeProcess)
    monkeypatch.setattr(search, "variants", lambda _package: list(FakeProcess.seconds))
    monkeypatch.setattr(search, "with_threads", lambda _options: [])
    monkeypatch.setattr(search, "not_installed", lambda _package: [])
    yield FakeProcess
    assert FakeProcess.running == 0, "every process has been closed"


def test_a_real_tuning_from_the_command_to_the_image(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "variants", lambda _package: [DEFAULT, OPENVINO])
    monkeypatch.setattr(search, "with_threads", lambda _options: [])
    before = listing(package)
    assert main(["tune", str(package), "--seconds", "60", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    default, openvino = result["candidates"]
    assert (default["backend"], openvino["backend"]) == ("onnxruntime", "openvino")
    for candidate in result["candidates"]:
        assert candidate["images"] >= 3 and 0 < candidate["p10"] <= candidate["seconds"] <= candidate["p90"]
        assert candidate["grey_levels"] < 1 and candidate["verdict"]
    assert result["seconds"] < 60 and Path(result["kept"]).parent.parent == cache
    assert listing(package) == before, "the package stays as it is"
    model = TextToImage.load(package)
    _, record = model.generate("a bag", seed=1, num_inference_steps=1)
    assert record["tuned"] and record["backend"] == result["candidates"][result["chosen"]]["backend"]


def test_what_was_kept_is_used_and_an_explicit_option_wins(opened: Package) -> None:
    keep(tuning(opened))
    path = opened.path
    model = TextToImage.load(path)
    assert model.tuning is not None and model.networks.options == ONE_THREAD
    assert "onnxruntime, 1 thread; when measured, 2.00 times as fast" in str(model.tuning)
    for options in (
        {"threads": 2},
        {"device": "cpu"},
        {"backend": "onnxruntime"},
        {"memory_gb": 1.0},
        {"tuned": False},
    ):
        other = TextToImage.load(path, **options)
        assert other.tuning is None and other.networks.options.threads == options.get("threads")


def test_the_commands_say_so_and_can_be_told_not_to(opened: Package, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tuning(opened))
    arguments = ["generate", str(opened.path), "a bag", "--steps", "1"]
    for options, said in ([], True), (["--no-tuned"], False), (["--threads", "1"], False):
        assert main([*arguments, *options]) == 0
        assert ("tuned: onnxruntime, 1 thread" in capsys.readouterr().err) == said
        assert ("tuned: onnxruntime, 1 thread" in CliRunner().invoke(app, [*arguments, *options]).stderr) == said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package": "sha256:" + "0" * 64}, "for another package"),
        ({"machine": replace(this_machine(), cores=1000)}, r"on another machine \(cores: 1000, here"),
        ({"versions": {**versions(), "onnxruntime": "0.1"}}, r"other versions \(onnxruntime: 0.1, here"),
        ({"options": replace(DEFAULT, backend="abacus")}, "backend is 'abacus'"),
        ({"options": replace(DEFAULT, threads=10**6)}, "threads is 1000000"),
        ({"options": replace(DEFAULT, precision="bf16")}, "only OpenVINO"),
        ({"options": replace(DEFAULT, memory_gb=0.01)}, "out of range"),
        ({"options": {"device": "cpu", "threads": "2"}}, "options.threads: expected a whole number"),
        ({"seconds": float("nan")}, "out of range"),
        ({"speedup": "fast"}, "speedup: expected a number"),
        ({"machine": []}, "machine: expected an object"),
        ({"schema_version": 99}, "no tuning of this version"),
        ({"padding": "x" * MAX_TUNING_BYTES}, "too large"),
        ("[" * 10_000, "nested too deeply"),
        ("[]", "no tuning of this version"),
        ("{", "not JSON"),
        (None, "no regular file"),
    ],
    ids=lambda x: "" if isinstance(x, (dict, str)) or x is None else str(x),
)
def test_a_foreign_or_damaged_tuning_is_ignored_with_a_warning(opened: Package, changes: Any, message: str) -> None:
    file = keep(tuning(opened))
    data = {**asdict(tuning(opened)), **changes} if isinstance(changes, dict) else changes
    file.unlink()
    if data is None:
        file.mkdir()
    else:
        as_data = lambda x: asdict(x)  # noqa: E731 (dataclasses inside)
        file.write_text(data if isinstance(data, str) else json.dumps(data, default=as_data))
    with pytest.warns(UserWarning, match=f"its tuning is ignored: .*{message}"):
        model = TextToImage.load(opened.path)
    assert model.tuning is None and model.networks.options == SessionOptions(backend="onnxruntime")


def test_a_tuning_copied_from_another_machine_is_ignored(opened: Package) -> None:
    keep(tuning(opened, machine=replace(this_machine(), processor="an abacus")))
    with pytest.warns(UserWarning, match=r"on another machine \(processor: an abacus, here"):
        assert TextToImage.load(opened.path).tuning is None


def test_a_tuning_that_cannot_be_loaded_any_more_is_left(opened: Package) -> None:
    keep(tuning(opened, options=replace(DEFAULT, device="cuda")))
    with pytest.warns(UserWarning, match="its tuning is ignored: this onnxruntime has no CUDA"):
        model = TextToImage.load(opened.path)
    assert model.tuning is None and model.device == "cpu"


def test_the_fastest_whose_images_are_the_same_is_chosen(opened: Package, fake: type[FakeProcess]) -> None:
    fake.seconds |= {OPENVINO: 0.8, BF16: 0.4, ONE_THREAD: 1.1}
    fake.grey = {BF16: 9, OPENVINO: 3}
    result = tune(opened, 60)
    assert result.chosen.options == OPENVINO and result.chosen.speedup(result.default) == pytest.approx(1.25)
    verdicts = {m.options: result.verdict(m) for m in result.measurements}
    assert verdicts[BF16] == "not taken: its images differ by 9.0 grey levels"
    assert verdicts[ONE_THREAD] == "does not pay: 0.91 times as fast"
    assert verdicts[OPENVINO] == "chosen: 1.25 times as fast"
    assert fake.drawn.count(OPENVINO) > fake.drawn.count(ONE_THREAD) > fake.drawn.count(BF16), "slower ones go"
    assert tune(opened, 60, max_grey_levels=10).chosen.options == BF16
    assert tune(opened, 60, max_grey_levels=2).chosen.options == DEFAULT


def test_one_that_left_early_is_not_chosen(
    opened: Package, fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is busy at first, for the default: against its first images everything looks fast."""
    fake.seconds |= {OPENVINO: 0.8, ONE_THREAD: 0.9}
    usual = fake.draw

    def draw(self: FakeProcess, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        reply = usual(self, request, timeout)
        if self.options == DEFAULT and request["seed"] < 6:
            reply["seconds"]["unet"] *= 3
        return reply

    monkeypatch.setattr(fake, "draw", draw)
    result = tune(opened, 60)
    early = next(m for m in result.measurements if m.options == ONE_THREAD)
    assert early.pays(result.default) and early.speedup(result.default) > 3
    assert result.chosen.options == OPENVINO and result.chosen.speedup(result.default) < 1.3


def test_threads_are_tried_where_there_is_but_one_backend(
    opened: Package, fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "variants", lambda _package: [DEFAULT])
    monkeypatch.setattr(search, "with_threads", lambda options: [ONE_THREAD] if options == DEFAULT else [])
    monkeypatch.setattr(search, "not_installed", lambda _package: ["openvino"])
    fake.seconds |= {ONE_THREAD: 0.5}
    result = tune(opened, 60)
    assert result.chosen.options == ONE_THREAD
    assert "openvino fp32" in text_table(opened, result) and "not installed" in text_table(opened, result)


def test_what_is_as_near_to_the_reference_as_the_default_may_be_chosen(
    opened: Package, fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "reference_options", lambda _package: OPENVINO)
    fake.seconds |= {OPENVINO: 2.0, ONE_THREAD: 0.8, BF16: 0.4}
    fake.grey = {DEFAULT: 9, ONE_THREAD: 9, BF16: 12}
    result = tune(opened, 60)
    assert result.default.grey_levels == 9 and result.chosen.options == ONE_THREAD


def test_nothing_pays(opened: Package, fake: type[FakeProcess]) -> None:
    fake.seconds |= {OPENVINO: 0.97}
    result = tune(opened, 60)
    assert result.chosen is result.default
    assert "default, chosen: nothing else pays" in text_table(opened, result)
    keep_choice(opened, result)
    kept = TextToImage.load(opened.path).tuning
    assert kept is not None and str(kept) == "nothing is faster than the default"


def test_the_time_is_kept(opened: Package, fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    fake.seconds |= {replace(DEFAULT, threads=n): 1.0 for n in range(2, 40)}
    quick = fake.draw

    def slow(self: FakeProcess, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        time.sleep(0.05)
        return {**quick(self, request, timeout), "elapsed": 0.05}

    monkeypatch.setattr(fake, "draw", slow)
    begun = time.perf_counter()
    result = tune(opened, 2)
    assert time.perf_counter() - begun < 2.3
    assert result.measurements[-1].problem == NO_TIME and not result.measurements[1].problem


WORKERS = {
    11: "import os; os.kill(os.getpid(), 9)",
    12: "import sys; print('no such kernel', file=sys.stderr); sys.exit(3)",
    13: "print('hello')",
    14: """import json, sys; print('{"error": {"message": "out of memory"}}')""",
    15: "import time; time.sleep(60)",
}


def test_a_candidate_that_dies_or_hangs_is_left_out_by_name(opened: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = processes.command

    def command(task: dict[str, Any]) -> list[str]:
        code = WORKERS.get(task["options"]["threads"])
        return usual(task) if code is None else [sys.executable, "-c", code]

    monkeypatch.setattr(processes, "command", command)
    monkeypatch.setattr(search, "variants", lambda _package: [DEFAULT, *(replace(DEFAULT, threads=n) for n in WORKERS)])
    monkeypatch.setattr(search, "with_threads", lambda _options: [])
    result = tune(opened, 8)
    problems = {m.options.threads: m.problem for m in result.measurements}
    assert problems[None] == "" and result.chosen is result.default
    assert "killed: memory has probably run out" in problems[11]
    assert problems[12] == "failed: its process ended with code 3: no such kernel"
    assert "its process ended with code 0" in problems[13]
    assert problems[14] == "failed: out of memory"
    assert problems[15].startswith("stopped: ")
    assert result.seconds < 9


def test_ctrl_c_leaves_nothing(
    package: Path, cache: Path, fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.seconds |= {OPENVINO: 0.5}

    def interrupted(self: FakeProcess, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "draw", interrupted)
    assert main(["tune", str(package), "-q"]) == 130
    assert CliRunner().invoke(app, ["tune", str(package), "-q"]).exit_code == 130
    assert not cache.exists()


def test_the_command_of_the_workstation(package: Path, fake: type[FakeProcess]) -> None:
    fake.seconds |= {OPENVINO: 0.5}
    done = CliRunner().invoke(app, ["tune", str(package), "-q"])
    assert done.exit_code == 0 and "openvino fp32" in done.stdout and "chosen: 2.00 times as fast" in done.stdout
    assert "kept in " in done.stdout
    assert json.loads(CliRunner().invoke(app, ["tune", str(package), "--json"]).stdout)["chosen"] == 1


def test_what_cannot_be_tuned(
    package: Path, opened: Package, fake: type[FakeProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--seconds", "0"], ["--seconds", "nan"], ["--max-difference", "-1"], ["--digest", "x"]):
        assert main(["tune", str(package), *arguments]) == 2
    assert "seconds is 0" in capsys.readouterr().err

    def broken(self: FakeProcess, timeout: float) -> None:
        raise RcdeployError("no such kernel")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RcdeployError, match="its own backend.*no such kernel"):
        patch.setattr(fake, "loaded", broken)
        tune(opened, 5)


def test_openvino_executes_an_onnx_package(package: Path) -> None:
    images = []
    for options in ({}, {"backend": "openvino", "precision": "fp32"}):
        drawn, record = TextToImage.load(package, threads=1, **options).generate("a bag", seed=1, num_inference_steps=2)
        images.append(np.asarray(drawn[0], int))
        assert record["backend"] == options.get("backend", "onnxruntime") and not record["tuned"]
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "executed by onnxruntime or openvino"),
        ({"precision": "bf16"}, "which only OpenVINO is told"),
        ({"backend": "openvino", "precision": "int4"}, "fp32, bf16, fp16 are allowed"),
        ({"backend": "openvino", "memory_gb": 1.0}, "does not limit openvino"),
        ({"backend": 3}, "backend is 3"),
    ],
)
def test_options_that_a_package_does_not_know(package: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RcdeployError, match=message):
        TextToImage.load(package, **options)


def test_cores() -> None:
    assert 1 <= physical_cores() <= len(usable_cores()) == this_machine().cores


def test_what_could_execute_a_package(opened: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdeploy_runtime.openvino_session.capabilities", lambda _device: ["FP32", "BF16", "INT8"])
    assert candidates.variants(opened) == [DEFAULT, OPENVINO, BF16]
    assert candidates.reference_options(opened) == DEFAULT
    assert ONE_THREAD in candidates.with_threads(DEFAULT)
    facts = replace(opened.facts, precision={"unet": "bf16", "text_encoder": "bf16", "vae_decoder": "fp32"})
    bf16 = SimpleNamespace(format="openvino", facts=facts)
    assert candidates.variants(bf16) == [OPENVINO, replace(OPENVINO, precision="fp32"), BF16]
    assert candidates.reference_options(bf16) == replace(OPENVINO, precision="fp32")
    assert candidates.precision_name(bf16, OPENVINO) == "bf16, decoder fp32"
    all_bf16 = SimpleNamespace(
        format="openvino", facts=replace(facts, precision=dict.fromkeys(facts.precision, "bf16"))
    )
    assert candidates.variants(all_bf16) == [OPENVINO, replace(OPENVINO, precision="fp32")]
