"""The folder of a tiny decoder: its manifest, and vae/ in diffusers' AutoencoderTiny layout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.manifest import NAME, Manifest

from ..diffusion_model import LatentDiffusionModel
from ..model_config import pixels_per_latent
from ..storage.tensors import load_tensors

VAE = "vae"
"""the folder of the weights: diffusers.AutoencoderTiny.from_pretrained(FOLDER / VAE)"""
MAKE_ONE = "A recipe with [decoder] makes one; rcdeploy.decoder.train writes it, and so does `rcdeploy build RECIPE`."


@dataclass(frozen=True)
class DecoderFacts:
    """The facts of a tiny decoder's manifest.

    steps: updates done when the manifest was written. vae: digest of the VAE that it imitates. parameters: of decoder
    and encoder. finished: vae/ has been written. validation: {"pixel": mean absolute difference in [-1, 1], "psnr": in
    decibels} on latents that training left out; empty for a small cache.
    """

    steps: int
    vae: str
    parameters: dict[str, int]
    machine: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TinyDecoder:
    """A tiny decoder that was opened. digest: of its manifest, or of its weights where it has none."""

    network: AutoencoderTiny
    folder: Path
    digest: str

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [n, c, h, w] -> images [n, 3, H, W] in [-1, 1]."""
        images: torch.Tensor = self.network.decoder(latents)
        return images

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.decoder.parameters())


def vae_digest(folder: Path) -> str:
    """Digest of the weights of a VAE folder, the same whether they are stored in single or half precision."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_tensors(file)
        for name in sorted(tensors):
            digest.update(f"{name}{list(tensors[name].shape)}".encode())
            digest.update(tensors[name].half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_decoder(folder: Path, model: LatentDiffusionModel) -> TinyDecoder:
    """A tiny decoder for the latents of `model`: a folder with a manifest, or any AutoencoderTiny folder (TAESD's).

    Raises RcdeployError when it is none, unfinished, for other latents or for another VAE than the model's.
    """
    weights, digest = folder, ""
    if (folder / NAME).is_file():
        manifest = Manifest.read(folder, "decoder")
        facts = manifest.facts_as(DecoderFacts)
        if not facts.finished:
            raise RcdeployError(
                f"the decoder {folder} is not finished: it stands at step {facts.steps:,}",
                fix="Run the command that trains it again: it continues.",
            )
        if wrong := manifest.wrong_files(folder):
            raise RcdeployError(
                f"the decoder {folder} is damaged", fix="Copy it again, or train it anew.", errors=wrong
            )
        weights, digest = folder / VAE, manifest.digest
        if facts.vae != vae_digest(model.folder / VAE):
            raise RcdeployError(
                f"the decoder {folder} was trained for the VAE of {manifest.teacher.get('id')}, and {model.folder} has "
                "another one",
                fix="Take the decoder of this model's teacher, or train one for it.",
            )
    if not (weights / "config.json").is_file():
        raise RcdeployError(f"{folder} is no tiny decoder: it has no {NAME} and no config.json", fix=MAKE_ONE)
    config = read_json(weights / "config.json")
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "AutoencoderTiny":
        raise RcdeployError(f"{folder} is no tiny decoder but a {kind}, not an AutoencoderTiny", fix=MAKE_ONE)
    network = _load(weights)
    _check_latents(folder, network.config, model)
    return TinyDecoder(network, folder, digest or sha256(next(iter(sorted(weights.glob("*.safetensors"))))))


def _load(folder: Path) -> AutoencoderTiny:
    try:
        network = AutoencoderTiny.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise RcdeployError(
            f"the decoder {folder} cannot be loaded: {error}",
            fix="Weights must be .safetensors: pickled .bin and .ckpt files are never opened.",
        ) from error
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise RcdeployError(f"{folder}: the decoder has NaN or infinite weights: {name}")
    return network.requires_grad_(False).eval()


def _check_latents(folder: Path, config: Any, model: LatentDiffusionModel) -> None:
    """Raises RcdeployError when the decoder takes other latents than the model makes, or enlarges them otherwise."""
    channels, pixels = int(config["latent_channels"]), pixels_per_latent(config)
    expected = int(model.unet_config["in_channels"]), model.pixels_per_latent
    if (channels, pixels) != expected:
        raise RcdeployError(
            f"the decoder {folder} takes latents of {channels} channels and enlarges them {pixels} times; "
            f"those of {model.name} have {expected[0]} channels and are enlarged {expected[1]} times",
            fix="Take a decoder for this model's latents.",
        )
