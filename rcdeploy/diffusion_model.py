"""The teacher: a diffusers text-to-image folder, opened once, and the only place that turns prompts into conditions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256

from .model_config import check_single_text_encoder, is_hub_name, latent_shape, pixels_per_latent, read_unet_config


@dataclass(frozen=True)
class Condition:
    """What a UNet is told beside x_t and t.

    prompt_embeds [n, tokens, width]; added: diffusers' added_cond_kwargs, each [n, ...] (SDXL's pooled embedding and
    time ids have their place here; SD-1.x and 2.x have none).
    """

    prompt_embeds: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        return Condition(self.prompt_embeds.to(device, dtype), {k: v.to(device, dtype) for k, v in self.added.items()})

    def take(self, rows: Sequence[int] | Tensor) -> Condition:
        index = torch.as_tensor(rows, dtype=torch.long, device=self.prompt_embeds.device)
        return Condition(self.prompt_embeds[index], {k: v[index] for k, v in self.added.items()})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        return Condition(
            torch.cat([p.prompt_embeds for p in parts]),
            {k: torch.cat([p.added[k] for p in parts]) for k in parts[0].added},
        )


def predict(unet: torch.nn.Module, noisy_latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The UNet's raw output (noise or velocity, as its schedule's prediction_type says), shaped like noisy_latents."""
    output: Tensor = unet(
        noisy_latents, timesteps, condition.prompt_embeds, added_cond_kwargs=condition.added or None, return_dict=False
    )[0]
    return output


def training_target(schedule: DDIMScheduler, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a UNet of this prediction type should say of x_t: the task loss's target. The one place that asks."""
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = schedule.get_velocity(x_0, noise, timesteps)
        return velocity
    raise RcdeployError(f"prediction_type {kind!r} is neither epsilon nor v_prediction")


class LatentDiffusionModel:
    """Frozen, in evaluation mode. Components are loaded when first used: caching never needs the VAE's decoder."""

    def __init__(self, path: str, *, revision: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        """path: a diffusers folder, or a name on the hub. Raises RcdeployError when it is no teacher we can use."""
        self.folder = _local(path, revision)
        self.name = self.folder.name if Path(path).exists() else path
        self.dtype, self.device = dtype, torch.device("cpu")
        self.unet_config = read_unet_config(self.folder)
        check_single_text_encoder(path, self.unet_config)
        schedule = read_json(self.folder / "scheduler" / "scheduler_config.json")
        # DDIM clips to [-1, 1] unless told otherwise, as pictures want it and latents do not
        self.schedule: DDIMScheduler = DDIMScheduler.from_config({"clip_sample": False, **schedule})
        self._parts: dict[str, Any] = {}
        self._revision: str | None = None

    @property
    def revision(self) -> str:
        """Digest of the components' configs and weights: two teachers with the same revision are the same."""
        if self._revision is None:
            parts = {}
            for name in ("unet", "text_encoder", "vae", "scheduler", "tokenizer"):
                for file in sorted((self.folder / name).glob("*")):
                    if file.suffix in (".safetensors", ".json", ".txt"):
                        parts[f"{name}/{file.name}"] = sha256(file)
            self._revision = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self._revision

    @property
    def identity(self) -> dict[str, str]:
        return {"id": self.name, "revision": self.revision}

    @property
    def vae_config(self) -> dict[str, Any]:
        config: dict[str, Any] = read_json(self.folder / "vae" / "config.json")
        return config

    @property
    def scaling_factor(self) -> float:
        return float(self.vae_config.get("scaling_factor", 0.18215))

    @property
    def pixels_per_latent(self) -> int:
        return pixels_per_latent(self.vae_config)

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """[c, h, w] for square pictures of `resolution` pixels, the teacher's own by default."""
        return latent_shape(self.unet_config, self.vae_config, resolution)

    def to(self, device: torch.device | str) -> LatentDiffusionModel:
        self.device = torch.device(device)
        for part in self._parts.values():
            if isinstance(part, torch.nn.Module):
                part.to(self.device)
        return self

    def _part(self, name: str, load: Any, dtype: torch.dtype) -> Any:
        if name not in self._parts:
            try:
                part = load(self.folder, subfolder=name, use_safetensors=True).to(dtype)
            except (OSError, ValueError, KeyError, StrictDataclassError) as error:
                raise RcdeployError(
                    f"the teacher's {name} cannot be loaded from {self.folder}: {error}",
                    fix="Weights must be .safetensors: pickled .bin and .ckpt files are never opened.",
                ) from error
            for tensor_name, tensor in part.state_dict().items():
                if not tensor.isfinite().all():
                    raise RcdeployError(f"the teacher's {name} has NaN or infinite weights: {tensor_name}")
            self._parts[name] = part.requires_grad_(False).eval().to(self.device)
        return self._parts[name]

    def load(self, *names: str) -> None:
        """Loads components now, so that what is wrong with them is said before anything is made with them."""
        for name in names:
            getattr(self, name)

    @property
    def unet(self) -> UNet2DConditionModel:
        return self._part("unet", UNet2DConditionModel.from_pretrained, self.dtype)

    @property
    def text_encoder(self) -> CLIPTextModel:
        return self._part("text_encoder", CLIPTextModel.from_pretrained, self.dtype)

    @property
    def vae(self) -> AutoencoderKL:
        """In fp32: fp16 decoders of some models overflow."""
        return self._part("vae", AutoencoderKL.from_pretrained, torch.float32)

    @property
    def tokenizer(self) -> Any:
        if "tokenizer" not in self._parts:
            self._parts["tokenizer"] = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        return self._parts["tokenizer"]

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """n prompts -> their condition; longer prompts than the context are cut. The null condition is that of ""."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        with torch.no_grad():
            embeds = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask).last_hidden_state
        return Condition(embeds)

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Scaled latents [n, c, h, w] -> pictures [n, 3, H, W] in [0, 1]."""
        parts = (latents.float() / self.scaling_factor).to(self.device).split(batch_size)
        return torch.cat([(self.vae.decode(part).sample / 2 + 0.5).clamp(0, 1) for part in parts])


def _local(path: str, revision: str | None) -> Path:
    if not is_hub_name(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.txt", "*/*.safetensors"]
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted, ignore_patterns=["*.fp16.*"]))
    except Exception as error:
        raise RcdeployError(
            f"{path} is no folder here and cannot be fetched from the hub: {error}",
            fix="Check the name and the network, or set teacher.path to a diffusers folder on this machine.",
        ) from error
