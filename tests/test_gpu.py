"""What a GPU does otherwise: mixed precision, several cards, CUDA in ONNX Runtime, TensorRT's engines.

`make gpu` runs them; without a GPU they are skipped and say why. Most have a twin on the processor that always runs, so
that their code does not rot where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import no_gpu
from safetensors.torch import load_file
from training_runs import GENTLE, Killed, RecipeOf, at_step, fail, metrics, ran, step_folder

from rcdeploy.cache_latents import make_latent_cache
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.latent_cache import LatentCache
from rcdeploy.recipe import Recipe
from rcdeploy_export.components import components
from rcdeploy_export.parity import compare
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.engine_options import EngineOptions
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.onnx_session import OnnxSession, onnxruntime
from rcdeploy_runtime.session_options import SessionOptions
from rcdeploy_runtime.sessions import open_session
from rcdeploy_runtime.trt_engines import build_engines, load_builder

gpu = pytest.mark.gpu
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHAPES = [(1, 8, 8), (2, 8, 8), (3, 8, 4)]


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where accelerate trains; its state, which remembers device and precision, is new before and after."""
    if request.param == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield request.param
    AcceleratorState._reset_state(reset_partial_state=True)


def on(device: str, *rest: str) -> object:
    """A case of a test: marked gpu where it needs one."""
    return pytest.param(device, *rest, marks=[gpu] if device == "cuda" else [], id="-".join((device, *rest)))


def differences(one: str, other: str, step: int) -> float:
    """Largest difference of the weights of two runs, in terms of how far each tensor moved since the first step."""
    first, a, b = (
        load_file(step_folder(folder, s) / "model.safetensors") for folder, s in ((one, 1), (one, step), (other, step))
    )
    moved = {name: (a[name] - first[name]).norm() for name in a}
    return max(float((a[name] - b[name]).norm() / moved[name]) for name in a if moved[name] > 1e-5)


@pytest.mark.parametrize(
    ("device", "precision"),
    [on("cpu", "no"), on("cuda", "no"), on("cuda", "fp16"), on("cuda", "bf16")],
    indirect=["device"],
)
def test_a_run_in_this_precision_resumes(tiny_recipe: RecipeOf, device: str, precision: str) -> None:
    """Backward kernels of a GPU add in any order, so that only the processor's runs are the same to the bit."""
    train = {**GENTLE, "max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9, "mixed_precision": precision}
    recipe = tiny_recipe(train=train)
    ran(recipe, "one")
    with pytest.raises(Killed):
        ran(recipe, "other", at_step(2, fail))
    assert ran(recipe, "other").step == 3
    allowed = 0.0 if device == "cpu" else 0.05
    assert differences("one", "other", 3) <= allowed, "an optimizer that starts anew differs by about 1"
    whole, resumed = metrics("one"), metrics("other")
    assert [entry["step"] for entry in resumed] == [1, 2, 3]
    assert [e["loss"] for e in resumed] == pytest.approx(
        [e["loss"] for e in whole], rel=0.0 if device == "cpu" else 0.02
    )
    assert Manifest.read(Path("other"), "run").wrong_files(Path("other")) == []
    scaler = json.loads((step_folder("other", 3) / "state.json").read_text())["scaler"]
    assert bool(scaler) == (precision == "fp16")


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"needs two GPUs, and {torch.cuda.device_count()} are here")
def test_two_gpus_equal_one(recipe_file: Callable[..., Path], tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    train = {**GENTLE, "max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9}
    ran(tiny_recipe(train=train), "one")
    options = {"--num_processes": "2", "--num_machines": "1", "--mixed_precision": "no", "--main_process_port": "0"}
    launch = ["-m", "accelerate.commands.launch", *(word for pair in options.items() for word in pair)]
    command = ["-m", "rcdeploy.cli.main", "distill", str(recipe_file(train=train)), "--out", "two", "-q"]
    done = subprocess.run(
        [sys.executable, *launch, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert differences("one", "two", 3) < 0.05


def filled(recipe: Recipe, device: str, dtype: torch.dtype) -> LatentCache:
    return make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path, dtype=dtype).to(device))


@pytest.mark.parametrize(
    ("device", "precision"),
    [on("cpu", "bf16"), on("cuda", "no"), on("cuda", "fp16"), on("cuda", "bf16")],
    indirect=["device"],
)
def test_a_cache_has_the_same_bytes_when_it_is_continued(tiny_recipe: RecipeOf, device: str, precision: str) -> None:
    """And its latents are the processor's to the rounding of the precision."""
    recipe = tiny_recipe()
    cache = filled(recipe, device, DTYPES[precision])
    shards = sorted(cache.folder.glob("latents-*.safetensors"))
    before = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    filled(recipe, device, DTYPES[precision])
    assert [shard.read_bytes() for shard in shards] == before
    expected = filled(tiny_recipe(cache={"folder": "expected"}), "cpu", torch.float32).latents(range(12))
    allowed = {"no": 2e-2, "fp16": 2e-2, "bf16": 1e-1}[precision]  # fp32 may be computed in TF32
    assert (cache.latents(range(12)) - expected).norm() / expected.norm() < allowed


@pytest.mark.parametrize("device", [on("cpu"), on("cuda")])
def test_onnx_runtime_agrees_with_torch(package: Path, small_model: Path, device: str) -> None:
    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA: docs/gpu.md has the two lines that swap it for onnxruntime-gpu")
    for component in components(LatentDiffusionModel(str(small_model)), encoder=False):
        session = open_session(package / component.name, "onnx", SessionOptions(device))
        assert session.device == device
        # CUDA multiplies fp32 in TF32, which has the ten bits of fp16
        compare(component, session, SHAPES, "fp16" if device == "cuda" else "fp32")


def test_a_session_never_claims_a_gpu_that_it_does_not_use(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu offers CUDA on every machine, and goes on with the processor where it cannot start it."""
    inference_session = onnxruntime.InferenceSession

    def without_cuda(*args: object, providers: list[str], **options: object) -> object:
        return inference_session(*args, providers=["CPUExecutionProvider"], **options)

    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    file = package / "vae_decoder/model.onnx"
    assert OnnxSession(file, "auto").device == "cpu"
    with pytest.raises(RcdeployError, match="cannot start CUDAExecutionProvider") as error:
        OnnxSession(file, "cuda")
    assert "onnxruntime-gpu" in str(error.value.fix)


@gpu
@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_engines_agree_with_torch(package: Path, small_model: Path, tmp_path: Path, builder: str) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    try:
        load_builder(rtx=builder == "tensorrt_rtx")
    except RcdeployError as error:
        pytest.skip(error.message)
    if builder == "tensorrt_rtx" and importlib.util.find_spec("tensorrt"):
        pytest.skip("the runtime opens engines with tensorrt where both are installed")
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    ahead = (capability,) if builder == "tensorrt_rtx" else ()
    sizes = ((32, 32), (64, 64), (64, 64))
    built = build_engines(package, tmp_path / "e", EngineOptions(max_batch=2, sizes=sizes, compute_capabilities=ahead))
    for component in components(LatentDiffusionModel(str(small_model)), encoder=False):
        session = open_session(built / component.name, "trt", SessionOptions("cuda"))
        compare(component, session, [(1, 8, 8), (2, 8, 8)], "fp16")
    images, record = TextToImage.load(built).generate("a bag", num_inference_steps=2)
    assert images[0].size == (64, 64) and record["device"] == "cuda"


def test_without_a_gpu_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(no_gpu())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no GPU" in str(no_gpu())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert no_gpu() is None
