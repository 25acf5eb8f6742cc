"""The tiny decoder: its network, exact resuming, the folder that diffusers opens, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from training_runs import Killed, RecipeOf, fail, metrics, same_bytes

from rcdeploy.bench.macs import module_macs
from rcdeploy.decoder.critic import build_critic
from rcdeploy.decoder.folder import DecoderFacts, open_decoder, vae_digest
from rcdeploy.decoder.losses import decoder_loss, encoder_features, latents_of_features, perceptual_loss
from rcdeploy.decoder.network import build_tiny, tiny_config
from rcdeploy.decoder.pairs import PairMaker
from rcdeploy.decoder.train import train_decoder
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.latent_cache import LatentCache
from rcdeploy.progress import no_log, no_progress
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_stages import Decoder
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

TINY = {"channels": 4, "blocks": [1, 1, 0, 0], "max_steps": 4, "batch_size": 3, "checkpoint_every": 1, "log_every": 1}


@pytest.fixture
def recipe(tiny_recipe: RecipeOf) -> Recipe:
    return tiny_recipe(decoder=TINY)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture
def trained(recipe: Recipe, trained_once: Path) -> Path:
    """tmp_path/one, a finished decoder of the tiny recipe; and its cache."""
    if not (trained_once / "one").exists():
        train_decoder(recipe, Path("one"), no_progress, no_log)
        shutil.copytree("one", trained_once / "one")
        shutil.copytree("cache", trained_once / "cache")
    else:
        shutil.copytree(trained_once / "one", "one")
        shutil.copytree(trained_once / "cache", "cache")
    return Path("one")


def at(step: int, do: Callable[[], None]) -> Callable[..., None]:
    def progress(stage: str, completed: int, *_: Any) -> None:
        if stage == "decoder" and completed == step:
            do()

    return progress


def sd_network(config: dict[str, Any] | None = None) -> AutoencoderTiny:
    sd = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "latent_channels": 4}
    with torch.device("meta"):
        return AutoencoderTiny.from_config(tiny_config(config or sd, Decoder()))


def test_the_default_at_sds_shape_is_taesd() -> None:
    network = sd_network()
    assert sum(p.numel() for p in network.decoder.parameters()) == 1_222_531
    assert sum(p.numel() for p in network.encoder.parameters()) == 1_222_532
    assert network.config.scaling_factor == 1
    assert network.decoder(torch.empty(1, 4, 64, 64, device="meta")).shape == (1, 3, 512, 512)
    assert network.encoder(torch.empty(1, 3, 512, 512, device="meta")).shape == (1, 4, 64, 64)
    macs = module_macs(network.decoder, x=torch.empty(1, 4, 64, 64, device="meta"))
    assert macs.total == pytest.approx(70.7e9, rel=1e-3)


def test_the_embedded_teachers_decoder_is_an_eighth_of_its_vae() -> None:
    from rcdeploy.bench.macs import vae_decoder_macs, vae_decoder_on_meta
    from rcdeploy_runtime.files import read_json

    root = Path(__file__).parent.parent
    config = read_json(root / "examples/teachers/fashion/vae/config.json")
    network = build_tiny(tiny_config(config, Decoder(channels=16, blocks=[3, 3, 1, 0])), 0)
    ours = module_macs(network.decoder, x=torch.zeros(1, 8, 8, 8))
    vae = vae_decoder_macs(vae_decoder_on_meta(config), (8, 8))
    assert ours.total <= vae.total / 8


def test_a_step_moves_decoder_and_encoder(tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    section = Decoder(channels=4)
    network = build_tiny(tiny_config(teacher.vae_config, section), 0)
    latents = torch.randn(2, 4, 4, 4)
    loss, losses = decoder_loss(network, teacher, latents, teacher.decode(latents) * 2 - 1, section)
    loss.backward()
    assert set(losses) == {"loss", "pixel", "perceptual", "encoder"}
    assert losses["loss"] == losses["pixel"] + losses["perceptual"] + losses["encoder"]
    for part in (network.decoder, network.encoder):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in teacher.vae.parameters())


def test_a_critic_and_the_decoder_learn_from_one_sum(tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    latents = torch.randn(2, 4, 4, 4)
    images = teacher.decode(latents) * 2 - 1

    def gradients(adversarial: float) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        section = Decoder(channels=4, pixel=0, perceptual=1e-30, adversarial=adversarial)
        network, critic = build_tiny(tiny_config(teacher.vae_config, section), 0), build_critic(3, 0)
        loss, losses = decoder_loss(network, teacher, latents, images, section, critic)
        loss.backward()
        assert set(losses) == {"loss", "pixel", "perceptual", "adversarial", "critic", "encoder"}
        assert losses["critic"] == pytest.approx(2, abs=0.5)  # it cannot tell them apart yet
        of_decoder = {n: p.grad for n, p in network.decoder.named_parameters() if p.grad is not None}
        return of_decoder, [p.grad for p in critic.parameters() if p.grad is not None]

    (small, critic_small), (large, critic_large) = gradients(1.0), gradients(3.0)
    assert small.keys() == large.keys() and any(g.abs().sum() > 0 for g in small.values())
    for name, gradient in small.items():
        torch.testing.assert_close(3 * gradient, large[name])
    # the critic's gradient is of its own loss alone
    assert all(torch.equal(a, b) for a, b in zip(critic_small, critic_large, strict=True))
    assert sum(g.abs().sum() for g in critic_small) > 0


def test_features_are_those_of_the_vaes_encoder(tiny_teacher: Path) -> None:
    vae = LatentDiffusionModel(str(tiny_teacher)).vae
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    features = encoder_features(vae, images)
    assert [f.shape[-1] for f in features] == [16, 8, 4, 4]
    torch.testing.assert_close(latents_of_features(vae, features[-1]), vae.encode(images).latent_dist.mean)
    assert perceptual_loss(features, features) == 0
    assert perceptual_loss([2 * f for f in features], features).item() == pytest.approx(1)


def test_pairs_are_latents_and_what_the_vae_decodes(trained: Path, tiny_teacher: Path) -> None:
    teacher, cache = LatentDiffusionModel(str(tiny_teacher)), LatentCache.open(Path("cache"))
    pairs = PairMaker(teacher, cache, Decoder(batch_size=8, noise=0.5))
    latents, images = pairs.pairs([(0, False), (0, True)])
    assert torch.equal(latents[0], cache.latents([0])[0])
    assert 0 < (latents[1] - latents[0]).std() < 1
    torch.testing.assert_close(images, teacher.decode(latents) * 2 - 1, atol=2e-3, rtol=0)
    batch = pairs.make(3)
    forgetful = PairMaker(teacher, cache, Decoder(batch_size=8, noise=0.5, target_cache_gb=0))
    assert all(torch.equal(a, b) for a, b in zip(batch, forgetful.make(3), strict=True))
    assert pairs.remembered and not forgetful.remembered
    assert not torch.equal(batch[0], pairs.make(4)[0])


def test_crops_are_decoded_by_themselves(trained: Path, tiny_teacher: Path) -> None:
    teacher, cache = LatentDiffusionModel(str(tiny_teacher)), LatentCache.open(Path("cache"))
    latents, images = PairMaker(teacher, cache, Decoder(batch_size=2, crop=3)).make(0)
    assert latents.shape == (2, 4, 3, 3) and images.shape == (2, 3, 24, 24)


def test_it_opens_in_diffusers_and_in_a_pipeline(trained: Path, tiny_teacher: Path) -> None:
    vae = AutoencoderTiny.from_pretrained(trained / "vae")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_teacher, vae=vae, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red shoe", num_inference_steps=1, output_type="pt", height=64, width=64).images
    assert image.shape == (1, 3, 64, 64)
    manifest = Manifest.read(trained, "decoder")
    facts = manifest.facts_as(DecoderFacts)
    assert facts.finished and facts.steps == 4 and facts.validation["psnr"] > 0
    assert facts.parameters["decoder"] == sum(p.numel() for p in vae.decoder.parameters())
    assert manifest.wrong_files(trained) == [] and (trained / "samples.png").is_file()


def test_a_finished_decoder_stays_and_a_longer_one_continues(recipe: Recipe, trained: Path) -> None:
    before = (trained / "manifest.json").read_bytes()
    assert train_decoder(recipe, trained, no_progress, no_log) == trained / "vae"
    assert (trained / "manifest.json").read_bytes() == before
    longer = recipe.model_copy(update={"decoder": recipe.decoder.model_copy(update={"max_steps": 5})})
    train_decoder(longer, trained, no_progress, no_log)
    assert Manifest.read(trained, "decoder").facts["steps"] == 5


def test_an_interrupted_training_continues_to_the_bit(recipe: Recipe, trained: Path) -> None:
    with pytest.raises(Killed):
        train_decoder(recipe, Path("two"), at(3, fail), no_log)
    assert not (Path("two") / "vae").exists()
    train_decoder(recipe, Path("two"), no_progress, no_log)
    same_bytes("one", "two", 4)
    assert metrics("one") == metrics("two")
    assert (Path("two/vae/diffusion_pytorch_model.safetensors")).read_bytes() == (
        trained / "vae/diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_a_critic_is_resumed_to_the_bit_and_stays_out_of_the_result(tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe(decoder=TINY | {"adversarial": 0.1, "adversarial_after": 1})
    train_decoder(recipe, Path("one"), no_progress, no_log)
    with pytest.raises(Killed):
        train_decoder(recipe, Path("two"), at(3, fail), no_log)
    train_decoder(recipe, Path("two"), no_progress, no_log)
    same_bytes("one", "two", 4)
    assert metrics("one") == metrics("two")
    first, *later = metrics("one")
    assert "critic" not in first and len({entry["critic"] for entry in later}) == 3  # it learns
    opened = AutoencoderTiny.from_pretrained("one/vae")
    assert not any("critic" in name for name in opened.state_dict())


def test_a_decoder_from_before_a_key_existed_continues(recipe: Recipe, trained: Path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    del manifest["recipe"]["decoder"]["adversarial"]
    (trained / "manifest.json").write_text(json.dumps(manifest))
    train_decoder(recipe, trained, no_progress, no_log)


def test_it_learns(recipe: Recipe, tiny_recipe: RecipeOf) -> None:
    settings = {"max_steps": 24, "learning_rate": 1e-2, "warmup_steps": 2, "log_every": 8, "noise": 0, "ema_decay": 0.5}
    train_decoder(tiny_recipe(decoder=TINY | settings), Path("run"), no_progress, no_log)
    entries = metrics("run")
    assert entries[-1]["pixel"] < 0.9 * entries[0]["pixel"]
    assert entries[-1]["encoder"] < entries[0]["encoder"]


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"blocks": [1, 1]}, "decoder.blocks has 2 numbers, and the teacher's VAE has 4 stages"),
        ({"crop": 9}, "decoder.crop = 9, and the cached latents are 8 on a side"),
    ],
)
def test_settings_that_do_not_fit_the_teacher(tiny_recipe: RecipeOf, decoder: dict[str, Any], message: str) -> None:
    with pytest.raises(RcdeployError, match=message):
        train_decoder(tiny_recipe(decoder=TINY | decoder), Path("run"), no_progress, no_log)
    assert not Path("run").exists() and not Path("cache").exists()


def test_a_recipe_without_the_section_is_refused(tiny_recipe: RecipeOf) -> None:
    with pytest.raises(RcdeployError, match="no section"):
        train_decoder(tiny_recipe(), Path("run"), no_progress, no_log)


def test_another_recipe_or_teacher_does_not_continue(
    recipe: Recipe, tiny_recipe: RecipeOf, trained: Path, other_teacher: Path
) -> None:
    with pytest.raises(RcdeployError, match="other settings") as error:
        train_decoder(tiny_recipe(decoder=TINY | {"channels": 8}), trained, no_progress, no_log)
    assert list(error.value.errors) == ["decoder.channels: 4 -> 8"]
    other = tiny_recipe(decoder=TINY, teacher={"path": str(other_teacher)})
    with pytest.raises(RcdeployError, match="another teacher"):
        train_decoder(other, trained, no_progress, no_log)


def test_who_may_use_a_decoder(trained: Path, tiny_teacher: Path, other_teacher: Path, small_model: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    decoder = open_decoder(trained, teacher)
    latents = torch.randn(1, 4, 8, 8)
    expected = AutoencoderTiny.from_pretrained(trained / "vae").decode(latents).sample
    assert torch.equal(decoder(latents), expected)
    assert open_decoder(trained / "vae", teacher).parameters == decoder.parameters  # without its manifest, as TAESD's
    with pytest.raises(RcdeployError, match="another one"):
        open_decoder(trained, LatentDiffusionModel(str(other_teacher)))
    with pytest.raises(RcdeployError, match="is a prompt_pool, not a decoder"):
        open_decoder(Path("cache/prompts"), teacher)
    with pytest.raises(RcdeployError, match="no tiny decoder: it has no manifest.json"):
        open_decoder(tiny_teacher / "unet" / "nothing", teacher)
    with pytest.raises(RcdeployError, match="no tiny decoder but a AutoencoderKL"):
        open_decoder(tiny_teacher / "vae", teacher)
    network = build_tiny({"latent_channels": 8}, 0)
    network.save_pretrained("eight")
    with pytest.raises(RcdeployError, match="latents of 8 channels"):
        open_decoder(Path("eight"), teacher)


def test_an_unfinished_or_damaged_decoder(trained: Path, tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    weights = trained / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(RcdeployError, match="damaged"):
        open_decoder(trained, teacher)
    manifest = Manifest.read(trained, "decoder")
    manifest.facts["finished"] = False
    manifest.write(trained)
    with pytest.raises(RcdeployError, match="not finished: it stands at step 4"):
        open_decoder(trained, teacher)


def test_the_digest_of_a_vae_is_that_of_its_weights(tiny_teacher: Path, other_teacher: Path, tmp_path: Path) -> None:
    vae = LatentDiffusionModel(str(tiny_teacher)).vae
    vae.half().save_pretrained(tmp_path / "half")
    assert vae_digest(tmp_path / "half") == vae_digest(tiny_teacher / "vae") != vae_digest(other_teacher / "vae")
