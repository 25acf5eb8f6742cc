"""Packages with a tiny decoder, without the VAE's encoder, and with a judge; models whose VAE is an AutoencoderTiny."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from evaluation import with_judge
from PIL import Image
from typer.testing import CliRunner

from rcdeploy.bench.costs import component_costs
from rcdeploy.bench.macs import module_macs
from rcdeploy.cli.main import app
from rcdeploy.decoder.network import build_tiny, tiny_config
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.target import EvaluationTarget
from rcdeploy.judge_files import JUDGE_FILES
from rcdeploy.model_description import describe_model
from rcdeploy.model_folder import resolve
from rcdeploy.progress import no_progress
from rcdeploy.recipe_stages import Decoder
from rcdeploy_export import package as package_module
from rcdeploy_export.components import Component
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.onnx_graph import export_onnx
from rcdeploy_export.package import export_package
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import Manifest

run = CliRunner().invoke
SECTION = Decoder(channels=8, blocks=[1, 0, 0, 1])


@pytest.fixture(scope="session")
def decoder(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderTiny folder that takes the small model's latents."""
    folder = tmp_path_factory.mktemp("decoder")
    config = tiny_config(LatentDiffusionModel(str(small_model)).vae_config, SECTION)
    build_tiny(config, seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_package(small_model: Path, decoder: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the small model: a tiny decoder, no encoder."""
    folder = tmp_path_factory.mktemp("tiny") / "package"
    with tracing_the_vae_alone(package):
        options = ExportOptions(decoder=decoder, encoder=False)
        export_package(ExportSource.open(small_model), folder, options, no_progress)
    return folder


@contextmanager
def tracing_the_vae_alone(package: Path) -> Iterator[None]:
    """Exports of the small model copy the other graphs of its finished package: tracing takes seconds."""

    def trace(component: Component, file: Path, **options: Any) -> None:
        if component.name.startswith("vae"):
            export_onnx(component, file, **options)
        else:
            file.parent.mkdir(parents=True)
            shutil.copyfile(package / component.name / "model.onnx", file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package_module, "export_onnx", trace)
        yield


def drawn_by_diffusers(model: Path, vae: Path | None, prompt: str, seed: int) -> np.ndarray:
    parts = {"vae": AutoencoderTiny.from_pretrained(vae)} if vae else {}
    pipeline = StableDiffusionPipeline.from_pretrained(model, **parts)
    pipeline.set_progress_bar_config(disable=True)
    noise = np.random.Generator(np.random.Philox(key=seed)).standard_normal((1, 4, 8, 8), np.float32)
    image = pipeline(prompt, latents=torch.from_numpy(noise), guidance_scale=4.0, num_inference_steps=3).images[0]
    return np.asarray(image, int)


def drawn(package: Path, prompt: str, seed: int) -> np.ndarray:
    images, _ = TextToImage.load(package).generate(prompt, seed=seed, guidance_scale=4.0, num_inference_steps=3)
    return np.asarray(images[0], int)


def test_the_package_draws_what_diffusers_draws_with_the_decoder(
    tiny_package: Path, small_model: Path, decoder: Path
) -> None:
    expected = drawn_by_diffusers(small_model, decoder, "a red shirt", 5)
    assert np.abs(drawn(tiny_package, "a red shirt", 5) - expected).max() <= 1
    assert np.abs(drawn_by_diffusers(small_model, None, "a red shirt", 5) - expected).max() > 1


def test_the_manifest_says_which_decoder_it_has(tiny_package: Path, decoder: Path) -> None:
    manifest = Manifest.read(tiny_package, "package")
    assert [origin["kind"] for origin in manifest.made_from] == ["decoder"]
    assert {p["component"] for p in manifest.facts["parity"]} == {"text_encoder", "unet", "vae_decoder"}
    assert manifest.facts["export"]["encoder"] is False
    config = read_json(tiny_package / "vae_decoder/config.json")
    assert config["_class_name"] == "AutoencoderTiny" and config["scaling_factor"] == 0.5
    assert read_json(tiny_package / "model_index.json")["vae"] == ["diffusers", "AutoencoderTiny"]
    described = describe_model(resolve(tiny_package))
    assert described.configs["vae"]["decoder_block_out_channels"] == [8] * 4
    assert manifest.size_of("vae_decoder") < (decoder / "diffusion_pytorch_model.safetensors").stat().st_size


def test_bench_counts_the_tiny_decoder(tiny_package: Path, decoder: Path) -> None:
    described = describe_model(resolve(tiny_package))
    network = AutoencoderTiny.from_pretrained(decoder).decoder
    counted = component_costs(described, described.image_size)["vae_decoder"]
    assert counted["parameters"] == sum(p.numel() for p in network.parameters())
    assert counted["macs"] == module_macs(network, x=torch.zeros(1, 4, 8, 8)).total


def test_img2img_needs_the_encoder(tiny_package: Path, package: Path) -> None:
    image = Image.new("RGB", (64, 64))
    model = TextToImage.load(tiny_package)
    with pytest.raises(RcdeployError, match=r"without the VAE's encoder") as error:
        model.generate("a red shirt", image=image, strength=0.5, num_inference_steps=2)
    assert "--no-encoder" in str(error.value.fix)
    TextToImage.load(package).generate("a red shirt", image=image, strength=0.5, num_inference_steps=2)


@pytest.mark.slow
def test_openvino(small_model: Path, decoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    options = ExportOptions(format="openvino", decoder=decoder, encoder=False)
    export_package(ExportSource.open(small_model), tmp_path / "p", options, no_progress)
    expected = drawn_by_diffusers(small_model, decoder, "a red shirt", 5)
    assert np.abs(drawn(tmp_path / "p", "a red shirt", 5) - expected).max() <= 1


def test_a_model_whose_vae_is_tiny(small_model: Path, decoder: Path, package: Path, tmp_path: Path) -> None:
    """As the hub has some: vae/ is an AutoencoderTiny with a scaling_factor of its own."""
    shutil.copytree(small_model, tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    shutil.copytree(decoder, tmp_path / "model/vae")
    index = (tmp_path / "model/model_index.json").read_text()
    (tmp_path / "model/model_index.json").write_text(index.replace("AutoencoderKL", "AutoencoderTiny"))
    with tracing_the_vae_alone(package):
        export_package(ExportSource.open(tmp_path / "model"), tmp_path / "p", ExportOptions(), no_progress)
    expected = drawn_by_diffusers(tmp_path / "model", None, "a red shirt", 5)
    assert np.abs(drawn(tmp_path / "p", "a red shirt", 5) - expected).max() <= 1
    image = Image.new("RGB", (64, 64), "red")
    encoded = TextToImage.load("p").networks.encode_image(image, 64, 64)
    vae = AutoencoderTiny.from_pretrained(decoder)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(torch.from_numpy(encoded), vae.encode(pixels).latents, rtol=1e-3, atol=1e-4)
    result = run(app, ["export", "model", "--format", "single-file", "-o", "model.safetensors"])
    assert "AutoencoderTiny" in str(result.exception) and not Path("model.safetensors").exists()


def test_the_judge_travels(small_model: Path, copied_graphs: None, tmp_path: Path) -> None:
    with_judge(small_model, tmp_path / "model")
    result = run(app, ["export", "model", "-o", "p", "-q", "--judge"])
    assert result.exit_code == 0, result.output
    packed = {f.name for f in (tmp_path / "p/judge").iterdir()}
    assert {"config.json", "model.safetensors"} <= packed <= set(JUDGE_FILES)
    assert EvaluationTarget.of(resolve(Path("p"))).judge == Path("p/judge")
    manifest = Manifest.read(Path("p"), "package")
    assert manifest.wrong_files(Path("p")) == []
    del manifest.files["judge/model.safetensors"]
    manifest.write(Path("p"))
    with pytest.raises(RcdeployError, match="not in its manifest"):
        EvaluationTarget.of(resolve(Path("p")))


def test_bad_input_is_refused(small_model: Path, decoder: Path, tmp_path: Path) -> None:
    shutil.copytree(decoder, "other")
    config = tiny_config(LatentDiffusionModel(str(small_model)).vae_config, SECTION)
    build_tiny({**config, "latent_channels": 8}, seed=1).save_pretrained("other")
    model = str(small_model)
    for arguments, message in (
        ([model, "--decoder", "nowhere"], "no such file"),
        ([model, "--decoder", model], "is no tiny decoder"),
        ([model, "--decoder", "other"], "latents of 8 channels"),
        ([model, "--judge"], "no judge beside the teacher"),
    ):
        result = run(app, ["export", *arguments, "-o", "p", "-q"])
        assert isinstance(result.exception, RcdeployError) and message in result.exception.message
        assert not Path("p").exists()
