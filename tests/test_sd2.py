"""A toy of SD-2's topology, from cache to runtime, on SD-2's noise schedule and on one that ends at zero SNR.

Its topology: a number of heads for each stage, linear projections, OpenCLIP's text encoder, v-prediction.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONTEXT, PAIRED, save_teacher
from diffusers import DDIMScheduler, StableDiffusionPipeline
from test_samplers import PEERS, SD, peer_of
from training_runs import metrics, ran
from transformers import CLIPTextConfig, CLIPTextModel

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.few_steps.leaps import Leaps
from rcdeploy.latent_cache import LatentCache
from rcdeploy.progress import no_progress
from rcdeploy.recipe_file import load_recipe
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy.student.built_in import TEACHERS
from rcdeploy_export import package as package_module
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.onnx_graph import export_onnx
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.noise import noise_generator
from rcdeploy_runtime.noise_schedule import NoiseSchedule
from rcdeploy_runtime.samplers import SAMPLERS

TOPOLOGY: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "upcast_attention": True,
}
# the special ids of SD-2's text_encoder/config.json are not its tokenizer's, and prompts are padded with "!"
TEXT = {"hidden_size": 24, "hidden_act": "gelu", "num_hidden_layers": 3, "num_attention_heads": 3}
TEXT |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
NOISE = {
    "v": {"prediction_type": "v_prediction"},
    "trailing": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "zero_snr": {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
}
STEPS = 4
"""with linspace spacing 0, 333, 666, 999: the runtime rounds timesteps that are not whole, diffusers does not"""
GUIDANCE = 3.0
PROMPT = "a red bag"


def with_noise(folder: Path, noise: dict[str, Any]) -> Path:
    """Changes the noise schedule of a diffusers folder or package."""
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | noise))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """Its VAE is the small model's, whose decoder the session has exported already."""
    folder = tmp_path_factory.mktemp("sd2") / "teacher"
    save_teacher(folder, text=TEXT, tokens={"pad_token": "!"}, noise=NOISE["v"], **TOPOLOGY)
    shutil.copytree(small_model / "vae", folder / "vae", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """A run of b-base at zero SNR, through the commands' own functions."""
    place = tmp_path_factory.mktemp("distilled")
    zero_snr = with_noise(Path(shutil.copytree(teacher, place / "teacher")), NOISE["zero_snr"])
    (place / "paired.txt").write_text("".join(f"{p}\n" for p in PAIRED))
    recipe = place / "recipe.toml"
    recipe.write_text(
        f'[teacher]\npath = "{zero_snr}"\n[student]\nname = "b-base"\n[prompts]\npaired = ["paired.txt"]\n'
        'paired_count = 8\n[cache]\nfolder = "cache"\nnum_inference_steps = 2\n[loss]\ntask = 1.0\n[train]\n'
        'max_steps = 2\nglobal_batch_size = 4\nmixed_precision = "no"\nlog_every = 1\ntrackers = []\n'
        "[evaluate]\nevery = 0\nnum_inference_steps = 2\nvalidation_size = 4\n"
    )
    ran(load_recipe(recipe), str(place / "run"))
    return place / "run"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, student: Path, package: Path) -> Path:
    def export(component: Any, file: Path, **options: Any) -> None:
        if component.name != "vae_decoder":
            export_onnx(component, file, **options)
            return
        file.parent.mkdir(parents=True)
        shutil.copyfile(package / "vae_decoder" / "model.onnx", file)

    folder = tmp_path_factory.mktemp("packages") / "sd2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package_module, "export_onnx", export)
        package_module.export_package(ExportSource.open(student), folder, ExportOptions(encoder=False), no_progress)
    return folder


def test_a_student_is_distilled_at_zero_snr(student: Path) -> None:
    cache = LatentCache.open(student.parent / "cache")
    assert cache.latents(range(len(cache))).isfinite().all()
    losses = [entry for entry in metrics(str(student)) if "output" in entry]
    assert losses and all(np.isfinite(entry[name]) for entry in losses for name in ("output", "feature", "task"))
    pipeline = LatentDiffusionModel(str(student / "pipeline"))
    assert pipeline.schedule.alphas_cumprod[-1] == 0 and pipeline.noise_schedule["prediction_type"] == "v_prediction"
    assert pipeline.unet_config["attention_head_dim"] == [2, 4] and pipeline.unet_config["use_linear_projection"]


@pytest.fixture(scope="module")
def pipeline(student: Path) -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(student / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def model(exported: Path) -> TextToImage:
    return TextToImage.load(exported, threads=1)


def test_the_package_has_the_teachers_noise_schedule(model: TextToImage) -> None:
    config = model.schedule.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert config.rescale_betas_zero_snr and model.schedule.alphas_cumprod[-1] == 0


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_package_samples_as_diffusers_does(
    sampler: str, noise: str, model: TextToImage, pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole images of the torch-free runtime, of every sampler, from the noise that it draws."""
    config = {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **NOISE[noise]}
    monkeypatch.setattr(model, "schedule", NoiseSchedule.from_config(config))
    peer = peer_of(sampler, config)
    monkeypatch.setattr(pipeline, "scheduler", peer)
    drawn = noise_generator(7)

    def draw(*_arguments: Any, **_options: Any) -> torch.Tensor:
        return torch.from_numpy(drawn.standard_normal((1, 4, 8, 8), np.float32))

    first = draw()
    module = __import__(PEERS[sampler].__module__, fromlist=["x"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", draw)
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    expected = pipeline(PROMPT, latents=first, output_type="np", **settings).images[0]
    images, _ = model.generate(PROMPT, seed=7, sampler=sampler, **settings)
    assert np.abs(np.asarray(images[0], float) / 255 - expected).max() < 2 / 255
    assert expected.std() > 0.01


def test_every_layer_of_the_stored_text_encoder_is_run(teacher: Path, model: TextToImage) -> None:
    """SD-2 reads the output of OpenCLIP's last layer but one; in diffusers' layout the last one is not there."""
    own = LatentDiffusionModel(str(teacher))
    pipeline = StableDiffusionPipeline.from_pretrained(teacher)
    expected, null = pipeline.encode_prompt(PROMPT, "cpu", 1, True)
    ours = own.encode_prompts([PROMPT, ""]).prompt_embeds
    torch.testing.assert_close(ours, torch.cat([expected, null]))

    whole = CLIPTextModel(CLIPTextConfig(**{**own.text_encoder.config.to_dict(), "num_hidden_layers": 4})).eval()
    assert not whole.load_state_dict(own.text_encoder.state_dict(), strict=False).unexpected_keys
    ids = torch.from_numpy(model.networks.text.tokenizer([PROMPT]))
    assert ids.shape == (1, CONTEXT) and ids[0, -1] == 0, "padded with '!', whose id is 0"
    with torch.no_grad():
        penultimate = whole(ids, output_hidden_states=True).hidden_states[-2]
        final_norm = getattr(whole, "text_model", whole).final_layer_norm
        torch.testing.assert_close(ours[:1], final_norm(penultimate))


def test_the_built_in_text_encoder_lacks_the_last_of_24_layers() -> None:
    for name in ("sd-2.1", "sd-2.1-base"):
        assert TEACHERS[name]["text_encoder"]["num_hidden_layers"] == 23
        assert TEACHERS[name]["text_encoder"]["hidden_size"] == TEACHERS[name]["unet"]["cross_attention_dim"]


def test_epsilon_at_zero_snr_is_refused_where_it_is_divided_by(teacher: Path, tmp_path: Path) -> None:
    noise = {**NOISE["zero_snr"], "prediction_type": "epsilon"}
    model = LatentDiffusionModel(str(with_noise(Path(shutil.copytree(teacher, tmp_path / "odd")), noise)))
    condition, null = model.encode_prompts([PROMPT]), model.encode_prompts([""])
    x_T = starting_noise(0, [0], model.latent_shape())
    with pytest.raises(RcdeployError, match="zero SNR"):
        sample_latents(model.unet, model.schedule, x_T, condition, null, num_inference_steps=2)
    with pytest.raises(RcdeployError, match="zero SNR"):
        Leaps.of(model.schedule, 2)
    leading = DDIMScheduler.from_config(model.schedule.config, timestep_spacing="leading")
    latents = sample_latents(model.unet, leading, x_T, condition, null, num_inference_steps=2)
    assert latents.isfinite().all(), "its first timestep has a signal"
    assert NoiseSchedule.from_config(model.noise_schedule).alphas_cumprod[-1] == 0
