"""rcdeploy evaluate of models that only diffusers knows, and what it refuses to open of a stranger's folder."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel, StableDiffusion3Pipeline
from evaluation import FAST, evaluate, save_judge, shard_bytes
from other_families import save_pixart, save_sd3
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rcdeploy import diffusers_pipeline
from rcdeploy.cli.main import app
from rcdeploy.diffusers_pipeline import native_image_size
from rcdeploy.evaluate.target import EvaluationTarget
from rcdeploy.model_config import is_other_family
from rcdeploy.model_folder import resolve
from rcdeploy.model_index import ModelIndex
from rcdeploy_runtime.errors import RcdeployError

SEED = 5
SAVERS = {"pixart": save_pixart, "sd3": save_sd3}
PIPELINES = {"pixart": PixArtAlphaPipeline, "sd3": StableDiffusion3Pipeline}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    saved = {name: save(folder / name) for name, save in SAVERS.items()}
    for model in saved.values():
        save_judge(model / "judge")
    return saved


@pytest.mark.parametrize("name", SAVERS)
def test_images_are_those_of_diffusers(models: dict[str, Path], name: str, captions: Path) -> None:
    options = ("--prompts", captions, "--count", 5, "--seed", SEED, "--guidance-scale", 3)
    record = evaluate(models[name], *options, "--batch-size", 2)
    stored = torch.cat(
        [load_file(p)["pictures"] for p in sorted(Path(record["folder"]).glob("pictures-*.safetensors"))]
    )
    assert stored.shape == (5, 3, 16, 16) and stored.float().std() > 1
    assert record["model"]["pipeline"] == PIPELINES[name].__name__ and "judge.item" in record["scores"]["all"]

    pipeline = PIPELINES[name].from_pretrained(models[name])
    pipeline.set_progress_bar_config(disable=True)
    own = {"use_resolution_binning": False} if name == "pixart" else {}
    expected = pipeline(
        Path(record["folder"], "prompts.txt").read_text().splitlines()[3],
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(SEED + 3),
        output_type="np",
        **own,
    ).images[0]
    assert np.abs(stored[3].permute(1, 2, 0).numpy() / 255 - expected).max() < 1.1 / 255

    before = shard_bytes(record["folder"])
    again = evaluate(models[name], *options)
    assert again["seconds"]["pictures_drawn"] == 0 and shard_bytes(record["folder"]) == before
    assert again["model"]["digest"] == record["model"]["digest"]


def test_an_interrupted_evaluation_goes_on(
    models: dict[str, Path], captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    original = PixArtAlphaPipeline.__call__

    def interrupted(self: Any, *, prompt: list[str], **arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(self, prompt=prompt, **arguments)

    interrupted.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(PixArtAlphaPipeline, "__call__", interrupted)
    options = ["--prompts", captions, "--count", 6, "--batch-size", 2, "--out", "set"]
    stopped = CliRunner().invoke(app, ["evaluate", str(models["pixart"]), *map(str, options), *FAST])
    assert stopped.exit_code == 130 and "4 of 6 images are kept in set" in stopped.stderr
    assert evaluate(models["pixart"], *options)["seconds"]["pictures_drawn"] == 2


def test_families_that_we_know_stay_ours(tiny_teacher: Path, tmp_path: Path) -> None:
    assert not is_other_family(tiny_teacher)
    target = EvaluationTarget.of(resolve(tiny_teacher))
    assert target.index is None and target.description is not None
    shutil.copytree(tiny_teacher, tmp_path / "model")
    shutil.rmtree(tmp_path / "model/unet")
    assert not is_other_family(tmp_path / "model"), "damaged, and told so by the way of its family"


def test_steps_and_guidance_are_by_default_the_pipelines(models: dict[str, Path]) -> None:
    for name, expected in (("pixart", (20, 4.5)), ("sd3", (28, 7.0))):
        spec = EvaluationTarget.of(resolve(models[name])).default_spec()
        assert (spec.num_inference_steps, spec.guidance_scale) == expected


class Pipeline:
    """What native_image_size reads of a pipeline."""

    vae_scale_factor = 8

    def __init__(self, sample_size: object = None, **attributes: Any) -> None:
        self.transformer = SimpleNamespace(config=SimpleNamespace(sample_size=sample_size))
        vars(self).update(attributes)

    def __call__(self, height: int = 1024, width: int = 768) -> None: ...


@pytest.mark.parametrize(
    ("pipeline", "size"),
    [
        (Pipeline(64), (512, 512)),
        (Pipeline([64, 96]), (512, 768)),
        (Pipeline(None), (1024, 768)),
        (Pipeline(64, default_sample_size=128), (1024, 1024)),
        (Pipeline(None, transformer=None, unet=SimpleNamespace(config=SimpleNamespace(sample_size=32))), (256, 256)),
    ],
)
def test_the_image_size_is_the_pipelines(models: dict[str, Path], pipeline: Pipeline, size: tuple[int, int]) -> None:
    assert native_image_size(ModelIndex.read(models["pixart"]), pipeline) == size


@pytest.mark.parametrize("sample_size", [10**6, [64], "64", [64, None], 64.5])
def test_an_image_size_that_is_none_is_refused(models: dict[str, Path], sample_size: object) -> None:
    with pytest.raises(RcdeployError, match="allowed are 1 to 8192"):
        native_image_size(ModelIndex.read(models["pixart"]), Pipeline(sample_size))


def test_a_sampler_of_ours_is_refused(models: dict[str, Path], captions: Path) -> None:
    with pytest.raises(RcdeployError, match="sampled by its own scheduler"):
        evaluate(models["pixart"], "--prompts", captions, "--sampler", "ddim")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def index(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "model_index.json", **values)


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "transformer/config.json", **values)


def code_in_the_folder(folder: Path) -> None:
    """What DiffusionPipeline.from_pretrained would run."""
    for name in ("diffusers", "mine"):
        (folder / f"transformer/{name}.py").write_text("open('ran', 'w')\n")
    (folder / "pipeline.py").write_text("open('ran', 'w')\n")


def code_that_is_named(folder: Path) -> None:
    code_in_the_folder(folder)
    change(folder / "model_index.json", transformer=["mine", "Model"])


def link_out(folder: Path) -> None:
    (folder.parent / "secret").write_text("{}")
    (folder / "tokenizer/added_tokens.json").symlink_to(folder.parent / "secret")


def linked_component(folder: Path) -> None:
    shutil.move(folder / "vae", folder.parent / "elsewhere")
    (folder / "vae").symlink_to(folder.parent / "elsewhere")


def shard_elsewhere(folder: Path) -> None:
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.rename(folder.parent / "weights.safetensors")
    names = dict.fromkeys(load_file(folder.parent / "weights.safetensors"), "../../weights.safetensors")
    entry = {"metadata": {"total_size": 1}, "weight_map": names}
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(entry))


def pickled(folder: Path) -> None:
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def weights_without(part: str, component: str = "transformer") -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (file,) = (folder / component).glob("*.safetensors")
        save_file({k: v for k, v in load_file(file).items() if part not in k}, file, {"format": "pt"})

    return harm


def infinite(folder: Path) -> None:
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    save_file({k: torch.full_like(v, torch.inf) for k, v in load_file(file).items()}, file, {"format": "pt"})


HARMS: list[tuple[Callable[[Path], None], str]] = [
    (code_that_is_named, "of the library 'mine'"),
    (index(_class_name=["pipeline", "PixArtAlphaPipeline"]), "only diffusers' own"),
    (index(_class_name="../pipeline"), "only diffusers' own"),
    (index(_class_name="AudioLDM2Pipeline"), "no text-to-image pipeline"),
    (index(_class_name="HfApi"), "no text-to-image pipeline"),
    (index(transformer=["os", "system"]), "of the library 'os'"),
    (index(transformer=["diffusers.utils", "load_image"]), "of the library 'diffusers.utils'"),
    (index(transformer=["diffusers", "DiffusionPipeline"]), "no network, no scheduler"),
    (index(transformer=["diffusers", "os"]), "(?s)diffusers has no class os|no network, no scheduler"),
    (index(transformer=["diffusers", "__loader__"]), "the class of transformer is"),
    (index(transformer=["diffusers", "NoSuchModel"]), "diffusers has no class NoSuchModel"),
    (index(tokenizer=["transformers", "pipeline"]), "no network, no scheduler"),
    (index(tokenizer=["transformers", "PretrainedConfig"]), "no network, no scheduler"),
    (index(**{"../vae": ["diffusers", "AutoencoderKL"]}), "no name of a component"),
    (index(vae={"a": 1}), "neither .library, class. nor"),
    (index(vae=[None, None]), "cannot be made|cannot draw"),
    (index(transformer=["diffusers", "AutoencoderKL"]), "transformer"),
    (link_out, "outside the model's folder"),
    (linked_component, "outside the model's folder"),
    (shard_elsewhere, "no .safetensors file beside it"),
    (pickled, "never opened"),
    (config(quantization_config={"quant_method": "torchao"}), "has quantization_config"),
    (config(sample_size=10**9), "up to 1,024 is allowed"),
    (config(sample_size=0), "cannot be loaded"),
    (config(num_attention_heads=3), "transformer"),
    (
        lambda folder: change(folder / "text_encoder/config.json", nested=[{"_attn_implementation": "a/kernel"}]),
        "has _attn_implementation",
    ),
    (lambda folder: (folder / "text_encoder/adapter_config.json").write_text("{}"), "names another model"),
    (weights_without("proj_out"), "lacks the tensor proj_out"),
    (weights_without("final_layer_norm", "text_encoder"), "lacks the tensor"),
    (infinite, "NaN or infinite weights"),
    (lambda folder: shutil.rmtree(folder / "tokenizer"), "has no folder tokenizer"),
]


@pytest.mark.parametrize(("harm", "message"), HARMS, ids=[message for _, message in HARMS])
def test_a_hostile_folder_is_refused(
    models: dict[str, Path], tmp_path: Path, captions: Path, harm: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(models["pixart"], tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(RcdeployError, match=message) as caught:
        evaluate("model", "--prompts", captions, "--count", 1)
    assert caught.value.fix
    assert not list(tmp_path.rglob("pictures-*")) and not (tmp_path / "ran").exists()


def test_code_in_the_folder_is_never_run(models: dict[str, Path], tmp_path: Path, captions: Path) -> None:
    shutil.copytree(models["pixart"], tmp_path / "model")
    code_in_the_folder(tmp_path / "model")
    evaluate("model", "--prompts", captions, "--count", 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [10**9, "many"])
def test_a_clip_tokenizer_that_pads_without_end_is_refused(
    models: dict[str, Path], tmp_path: Path, captions: Path, length: object
) -> None:
    shutil.copytree(models["sd3"], tmp_path / "model")
    change(tmp_path / "model/tokenizer/tokenizer_config.json", model_max_length=length)
    with pytest.raises(RcdeployError, match="model_max_length is"):
        evaluate("model", "--prompts", captions, "--count", 1)


@pytest.mark.slow  # a process of its own loads everything anew
def test_libraries_say_nothing(models: dict[str, Path], captions: Path) -> None:
    command = [sys.executable, "-m", "rcdeploy", "evaluate", str(models["pixart"]), "--prompts", str(captions)]
    done = subprocess.run([*command, "--count", "1", "--quiet", *FAST], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_a_pixart_of_the_hub_names_an_older_class(models: dict[str, Path], tmp_path: Path, captions: Path) -> None:
    shutil.copytree(models["pixart"], tmp_path / "model")
    index(transformer=["diffusers", "Transformer2DModel"])(tmp_path / "model")
    config(_class_name="Transformer2DModel")(tmp_path / "model")
    arguments = ("--prompts", captions, "--count", 1)
    folders = [evaluate(model, *arguments)["folder"] for model in ("model", models["pixart"])]
    assert shard_bytes(folders[0], "pictures") == shard_bytes(folders[1], "pictures")


def test_weights_in_shards_are_read(models: dict[str, Path], tmp_path: Path, captions: Path) -> None:
    shutil.copytree(models["pixart"], tmp_path / "model")
    folder = tmp_path / "model/transformer"
    network = PixArtTransformer2DModel.from_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    evaluate("model", "--prompts", captions, "--count", 1)
    next(folder.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(RcdeployError, match="is missing"):
        evaluate("model", "--prompts", captions, "--count", 1)


def test_a_missing_package_is_named(
    models: dict[str, Path], tmp_path: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models["pixart"], tmp_path / "model")
    (tmp_path / "model/tokenizer/tokenizer.json").rename(tmp_path / "model/tokenizer/spiece.model")
    monkeypatch.setattr(diffusers_pipeline, "find_spec", lambda _name: None)
    with pytest.raises(RcdeployError, match="needs the package sentencepiece"):
        evaluate("model", "--prompts", captions, "--count", 1)


def test_an_image_with_nan_is_an_error(
    models: dict[str, Path], captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = diffusers_pipeline.load_pipeline

    def broken(*arguments: Any) -> Any:
        pipeline = load(*arguments)
        pipeline.vae.decoder.conv_out.bias.data.fill_(torch.nan)
        return pipeline

    monkeypatch.setattr("rcdeploy.evaluate.image_source.load_pipeline", broken)
    with pytest.raises(RcdeployError, match="is NaN"):
        evaluate(models["sd3"], "--prompts", captions, "--count", 1)
