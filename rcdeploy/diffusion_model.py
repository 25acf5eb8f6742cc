"""A latent diffusion model in a diffusers folder (teacher or student); the one place that encodes prompts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256

from .condition import Condition
from .hub import local_folder
from .model_config import (
    latent_shape,
    model_components,
    native_latent_size,
    pixels_per_latent,
    read_config,
    read_supported_unet_config,
    zeros_for_empty_prompt,
)
from .model_files import check_component_files, check_tensors
from .model_trial import try_network
from .student.build import load_unet_with_info
from .text_encoding import encode, encode_sdxl, load_tokenizer, zeros_like
from .vae import VaeDecoder, vae_class


class LatentDiffusionModel:
    """Text encoder, UNet, VAE and noise schedule of a diffusers folder, frozen, in evaluation mode.

    Components are loaded when first used: filling the latent cache never loads the VAE.
    """

    def __init__(self, path: str, *, revision: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        """path: a diffusers folder, or a name on the hub. Raises RcdeployError when it is not a supported model."""
        self.folder = _local_folder(path, revision)
        self.name = self.folder.name if Path(path).exists() else path
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.unet_config = read_supported_unet_config(self.folder)
        self.components = model_components(self.unet_config)
        check_component_files(self.folder, self.components)
        self.schedule = _noise_schedule(self.folder / "scheduler" / "scheduler_config.json")
        self._components: dict[str, Any] = {}
        self._revision: str | None = None

    @property
    def revision(self) -> str:
        """Digest of the components' configs and weights: models with the same revision are the same."""
        if self._revision is None:
            digests = {}
            for name in self.components:
                for file in sorted((self.folder / name).glob("*")):
                    if file.suffix in (".safetensors", ".json", ".txt"):
                        digests[f"{name}/{file.name}"] = sha256(file)
            self._revision = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
        return self._revision

    @property
    def identity(self) -> dict[str, str]:
        return {"id": self.name, "revision": self.revision}

    @property
    def noise_schedule(self) -> dict[str, Any]:
        """diffusers' scheduler config, without its private keys."""
        return {k: v for k, v in self.schedule.config.items() if not k.startswith("_")}

    @property
    def vae_config(self) -> dict[str, Any]:
        return read_config(self.folder / "vae" / "config.json")

    @property
    def scaling_factor(self) -> float:
        factor = self.vae_config.get("scaling_factor", 0.18215)
        if not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise RcdeployError(f"{self.folder / 'vae/config.json'}: scaling_factor is {factor!r}, no positive number")
        return float(factor)

    @property
    def pixels_per_latent(self) -> int:
        return pixels_per_latent(self.vae_config)

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """[c, h, w] of the latents of square images of `resolution` pixels, by default the native size."""
        return latent_shape(self.unet_config, self.vae_config, resolution)

    def to(self, device: torch.device | str) -> LatentDiffusionModel:
        self.device = torch.device(device)
        for component in self._components.values():
            if isinstance(component, torch.nn.Module):
                component.to(self.device)
        return self

    def _component(self, name: str, model_class: Any, dtype: torch.dtype) -> Any:
        if name not in self._components:
            module = self._load_component(name, model_class)
            try_network(name, module)
            module.to(dtype)
            for tensor_name, tensor in module.state_dict().items():
                if not tensor.isfinite().all():
                    raise RcdeployError(f"{self.folder}: the {name} has NaN or infinite weights: {tensor_name}")
            self._components[name] = module.requires_grad_(False).eval().to(self.device)
        return self._components[name]

    def _load_component(self, name: str, model_class: Any) -> torch.nn.Module:
        """Raises RcdeployError for files that cannot be read, and for tensors that are absent, unknown or misshapen."""
        # transformers would not name misshapen tensors in its own error; they are refused below
        options = {"ignore_mismatched_sizes": True} if issubclass(model_class, PreTrainedModel) else {}
        try:
            if name == "unet":  # parts of ours may stand in it
                module, info = load_unet_with_info(self.folder / name)
            else:
                module, info = model_class.from_pretrained(
                    self.folder, subfolder=name, use_safetensors=True, output_loading_info=True, **options
                )
        except Exception as error:  # a config with odd values makes the libraries raise whatever they like
            raise RcdeployError(
                f"the {name} cannot be loaded from {self.folder}: {error}",
                fix="Weights must be .safetensors: pickled .bin and .ckpt files are never opened.",
            ) from error
        check_tensors(self.folder, name, info)
        return module

    def load(self, *names: str) -> None:
        """Loads components now, so that errors in them show before anything is computed."""
        for name in names:
            getattr(self, name)

    def release(self, *names: str) -> None:
        """Gives the memory of components back; who uses one again loads it again."""
        for name in names:
            self._components.pop(name, None)

    @property
    def unet(self) -> UNet2DConditionModel:
        return self._component("unet", UNet2DConditionModel, self.dtype)

    @property
    def text_encoder(self) -> CLIPTextModel:
        return self._component("text_encoder", CLIPTextModel, self.dtype)

    @property
    def text_encoder_2(self) -> CLIPTextModelWithProjection:
        """SDXL's second."""
        return self._component("text_encoder_2", CLIPTextModelWithProjection, self.dtype)

    @property
    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        """In fp32: fp16 decoders of some models overflow."""
        return self._component("vae", vae_class(self.vae_config), torch.float32)

    @property
    def vae_decoder(self) -> VaeDecoder:
        """What decode() runs: that of the VAE, or a tiny one."""
        if "vae_decoder" not in self._components:
            self._components["vae_decoder"] = VaeDecoder(self.vae)
        decoder: VaeDecoder = self._components["vae_decoder"]
        return decoder

    def use_decoder(self, network: AutoencoderTiny) -> None:
        """Decodes with a tiny decoder from now on, one that takes scaled latents."""
        self._components["vae_decoder"] = VaeDecoder(network, scale=self.scaling_factor).to(self.device)

    @property
    def tokenizer(self) -> Any:
        """Raises RcdeployError for one that cannot be read; code that comes with it is never run."""
        return self._tokenizer("tokenizer")

    @property
    def tokenizer_2(self) -> Any:
        """That of SDXL's second text encoder."""
        return self._tokenizer("tokenizer_2")

    def _tokenizer(self, name: str) -> Any:
        if name not in self._components:
            self._components[name] = load_tokenizer(self.folder / name)
        return self._components[name]

    @property
    def has_two_text_encoders(self) -> bool:
        return "text_encoder_2" in self.components

    def encode_prompts(self, prompts: Sequence[str], latent_size: Sequence[int] | None = None) -> Condition:
        """n prompts -> a condition of n rows; prompts beyond the context are cut.

        latent_size: (height, width) of the latents that it is for, by default the native one: SDXL is told the
        image's size.
        """
        if not self.has_two_text_encoders:
            return encode(self.tokenizer, self.text_encoder, prompts, self.folder)
        height, width = latent_size or native_latent_size(self.unet_config)
        image_size = height * self.pixels_per_latent, width * self.pixels_per_latent
        tokenizers, encoders = (self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2)
        return encode_sdxl(tokenizers, encoders, prompts, image_size, self.folder)

    def null_condition(self, latent_size: Sequence[int] | None = None) -> Condition:
        """One row: that of "", or zeros where the model's pipeline takes them (SDXL)."""
        condition = self.encode_prompts([""], latent_size)
        return zeros_like(condition) if zeros_for_empty_prompt(self.folder) else condition

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Scaled latents [n, c, h, w] -> images [n, 3, H, W] in [0, 1]."""
        batches = (latents.float() / self.scaling_factor).to(self.device).split(batch_size)
        return torch.cat([(self.vae_decoder(batch) / 2 + 0.5).clamp(0, 1) for batch in batches])


def _noise_schedule(file: Path) -> DDIMScheduler:
    """Raises RcdeployError for a config from which DDIM cannot be made, and for other predictions than ours."""
    config = read_json(file)
    try:
        # DDIM clips x_0 to [-1, 1] by default, which is right for pixels and wrong for latents
        schedule = DDIMScheduler.from_config({"clip_sample": False, **config})
    except Exception as error:  # odd values make diffusers and torch raise whatever they like
        raise RcdeployError(f"{file} is no noise schedule: {type(error).__name__}: {str(error)[:300]}") from error
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise RcdeployError(
            f"{file}: prediction_type is {schedule.config.prediction_type!r}, neither epsilon nor v_prediction"
        )
    return schedule


def _local_folder(path: str, revision: str | None) -> Path:
    patterns = ("*.json", "*.txt", "*/*.safetensors")
    instead = "set teacher.path to a diffusers folder on this machine"
    return local_folder(path, patterns, ignore=["*.fp16.*"], revision=revision, instead=instead)
