"""A teacher of a few thousand weights, with every part that a real one has, and recipes around it."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# tests fork processes and compare bytes: one thread, here and in every process that a test starts
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
# a developer's own tunings and digests are not the tests'
USER_CACHE = tempfile.TemporaryDirectory(prefix="rcdeploy-tests-")
os.environ["XDG_CACHE_HOME"] = USER_CACHE.name

import pytest  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402
from filelock import FileLock  # noqa: E402
from tokenizers import pre_tokenizers  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

from rcdeploy.progress import no_progress  # noqa: E402
from rcdeploy.recipe import Recipe  # noqa: E402
from rcdeploy.recipe_file import load_recipe  # noqa: E402
from rcdeploy_runtime import files  # noqa: E402

pytest_plugins = ["training_runs"]

torch.set_num_threads(1)


def no_gpu() -> str | None:
    """Why tests marked gpu cannot run here; None where they can."""
    if torch.cuda.is_available():
        return None
    version = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"needs a CUDA device, and {version} was built without CUDA"
    return f"needs a CUDA device, and {version} (CUDA {torch.version.cuda}) finds no GPU or no driver"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := no_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))


CONTEXT = 16
COLOURS = ("red", "blue", "green", "black")
THINGS = ("shirt", "shoe", "bag", "coat", "dress")
PAIRED = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]
FURTHER = [f"two {thing}s on a {colour} table" for colour in COLOURS for thing in THINGS]

DEFAULTS: dict[str, dict[str, Any]] = {
    "student": {"name": "c-micro"},
    "prompts": {"paired_count": 12},
    "cache": {"num_inference_steps": 2, "batch_size": 4, "shard_size": 5},
    "train": {
        "max_steps": 6,
        "global_batch_size": 4,
        "learning_rate": 1e-3,
        "mixed_precision": "no",
        "checkpoint_every": 2,
        "log_every": 1,
        "trackers": [],
    },
    "evaluate": {"every": 0, "num_inference_steps": 2, "validation_size": 4},
}


def unet_config(**changes: Any) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        **changes,
    }


def tokenizer(**settings: Any) -> CLIPTokenizer:
    """A CLIP tokenizer of bytes and five merges; ids in CLIP's order, special tokens last. settings: of its class."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("s", "h"), ("b", "l"), ("a", "g</w>"), ("re", "d</w>")]
    tokens = [*letters, *(x + "</w>" for x in letters), *("".join(m) for m in merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT, **settings)


def save_teacher(
    folder: Path,
    *,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    tokens: dict[str, Any] | None = None,
    noise: dict[str, Any] | None = None,
    **unet: Any,
) -> Path:
    """Write a diffusers folder with random weights.

    text, tokens, noise, unet: changes of the configs of its text encoder, tokenizer, noise schedule and UNet.
    """
    clip_tokenizer = tokenizer(**(tokens or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                **{
                    "vocab_size": len(clip_tokenizer),
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "projection_dim": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "max_position_embeddings": CONTEXT,
                    "bos_token_id": clip_tokenizer.bos_token_id,
                    "eos_token_id": clip_tokenizer.eos_token_id,
                    "pad_token_id": clip_tokenizer.pad_token_id,
                    **(text or {}),
                }
            )
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=64,
            scaling_factor=0.5,
        )
        model = UNet2DConditionModel(**unet_config(**unet))
    schedule = DDIMScheduler(
        **{
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            **(noise or {}),
        }
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip_tokenizer,
        unet=model,
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="session")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "other", seed=1)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages of one layer: an export takes time for every node of the graph."""

    def make(folder: Path) -> None:
        save_teacher(
            folder,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
        )

    return made_once(tmp_path_factory, "small", make)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that one of pytest's processes makes and the others read: an export takes half a minute."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    finished = folder.with_suffix(".finished")
    with FileLock(folder.with_suffix(".lock")):
        if not finished.exists():
            make(folder)
            finished.touch()
    return folder


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """The small model as an ONNX package. Shared: tests that change it copy it first."""
    from rcdeploy_export.export_options import ExportOptions
    from rcdeploy_export.package import export_package
    from rcdeploy_export.source import ExportSource

    def make(folder: Path) -> None:
        export_package(ExportSource.open(small_model), folder, ExportOptions(), no_progress)

    return made_once(tmp_path_factory, "tiny", make)


def copy_graphs(package: Path, patch: pytest.MonkeyPatch) -> None:
    """Exports of the small model copy the graphs of its finished package: tracing takes seconds."""
    import onnx

    from rcdeploy_export import package as package_module
    from rcdeploy_export.onnx_graph import save

    def copy_graph(component: Any, file: Path, **options: Any) -> None:
        assert options["dtype"] == torch.float32 and options["static"] is None
        save(onnx.load(package / component.name / "model.onnx"), file, external_data=options["external_data"])

    patch.setattr(package_module, "export_onnx", copy_graph)


@pytest.fixture
def copied_graphs(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_graphs(package, monkeypatch)  # the test's own patches come after it, and go before it


def toml(data: dict[str, Any]) -> str:
    """A dict of sections as TOML; JSON's strings, numbers, booleans and lists are TOML's."""
    lines = []
    for section, keys in data.items():
        lines += [
            "",
            f"[{section}]",
            *(f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None),
        ]
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    return text


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_teacher: Path) -> Callable[..., Path]:
    """Writes tmp_path/tiny.toml, and the captions that it names. Overrides: train={"max_steps": 2}."""

    def write(name: str = "tiny", **overrides: dict[str, Any]) -> Path:
        (tmp_path / "paired.txt").write_text("".join(f"{p}\n" for p in PAIRED))
        (tmp_path / "further.txt").write_text("".join(f"{p}\n" for p in FURTHER))
        data: dict[str, dict[str, Any]] = {
            "teacher": {"path": str(tiny_teacher)},
            **{section: dict(keys) for section, keys in DEFAULTS.items()},
        }
        data["prompts"] |= {"paired": ["paired.txt"], "pool": ["further.txt"]}
        data["cache"] |= {"folder": "cache"}
        for section, keys in overrides.items():
            data.setdefault(section, {}).update(keys)
        file = tmp_path / f"{name}.toml"
        file.write_text(toml(data))
        return file

    return write


@pytest.fixture
def tiny_recipe(recipe_file: Callable[..., Path]) -> Callable[..., Recipe]:
    """The loaded recipe of recipe_file(**overrides)."""
    return lambda **overrides: load_recipe(recipe_file(**overrides))


@pytest.fixture(scope="session")
def judged(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher with a judge of random weights, and reference statistics for it."""
    from evaluation import with_judge

    return with_judge(tiny_teacher, tmp_path_factory.mktemp("judged") / "tiny")


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    (tmp_path / "captions.txt").write_text("".join(f"{p}\n" for p in PAIRED))
    return tmp_path / "captions.txt"


@pytest.fixture
def sweep_file(tmp_path: Path, recipe_file: Callable[..., Path]) -> Callable[..., Path]:
    """Writes tmp_path/NAME.toml: a sweep of the tiny recipe (sweeps.py)."""
    from sweeps import sweep_writer

    return sweep_writer(tmp_path, recipe_file)


@pytest.fixture
def finished(sweep_file: Callable[..., Path]) -> Any:
    """The plan of a sweep of one seed, every trial run in this process."""
    from sweeps import SWEEP, silent

    from rcdeploy.sweep.plan import load_plan
    from rcdeploy.sweep.run_trial import run_trial

    plan = load_plan(sweep_file(SWEEP.replace("[0, 1]", "[0]"), train={"max_steps": 2}))
    for trial in plan.trials:
        assert run_trial(plan, trial, silent, silent)
    return plan


@pytest.fixture(autouse=True)
def in_tmp_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches, pools and runs go to the current folder by default: a test that has a folder of its own works there."""
    if "tmp_path" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("tmp_path"))
    yield


@pytest.fixture(scope="session", autouse=True)
def without_sync() -> Iterator[None]:
    """No test cuts the power, and thousands of fsyncs cost minutes; tests/test_files.py looks at their order."""
    original = files.sync
    files.sync = lambda _path: None  # type: ignore[assignment]
    yield
    files.sync = original


@pytest.fixture(autouse=True)
def no_signal_stack() -> Iterator[None]:
    """openvino-genai may leave a stack for signal handlers that it has freed: the next signal would end pytest."""
    yield
    if sys.platform == "linux":
        disabled = struct.pack("@PiN", 0, 2, 0)  # struct sigaltstack {NULL, SS_DISABLE, 0}
        ctypes.CDLL(None).sigaltstack(disabled, None)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below: size and time of the last change."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) if p.is_file() else (0, 0)
        for p in sorted(folder.rglob("*"))
    }
