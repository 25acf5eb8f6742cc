"""A latent diffusion model in a diffusers folder (teacher or student); the one place that encodes prompts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.limits import MAX_CONTEXT

from .model_config import is_hub_name, latent_shape, pixels_per_latent, read_config, read_supported_unet_config
from .model_files import check_component_files
from .model_trial import try_network
from .student.build import load_unet_with_info
from .vae import VaeDecoder, vae_class

COMPONENTS = ("unet", "text_encoder", "vae", "scheduler", "tokenizer")
MAX_LISTED_TENSORS = 8


@dataclass(frozen=True)
class Condition:
    """The conditioning input of a UNet: prompt embeddings, and added conditioning where a model has it.

    prompt_embeds: [n, tokens, width]. added: diffusers' added_cond_kwargs, each [n, ...] (SDXL's pooled embedding and
    time ids; SD-1.x and 2.x have none).
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
    """Training target for the scheduler's prediction_type: noise or velocity, shaped like x_0 (task loss)."""
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = schedule.get_velocity(x_0, noise, timesteps)
        return velocity
    raise RcdeployError(f"prediction_type {kind!r} is neither epsilon nor v_prediction")


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
        check_component_files(self.folder, COMPONENTS)
        self.schedule = _noise_schedule(self.folder / "scheduler" / "scheduler_config.json")
        self._components: dict[str, Any] = {}
        self._revision: str | None = None

    @property
    def revision(self) -> str:
        """Digest of the components' configs and weights: models with the same revision are the same."""
        if self._revision is None:
            digests = {}
            for name in COMPONENTS:
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
        problems = [f"{name} lacks the tensor {key}" for key in info["missing_keys"]]
        # position_ids is a buffer that older files hold and newer classes compute
        problems += [f"{name} has no place for {key}" for key in info["unexpected_keys"] if "position_ids" not in key]
        problems += [
            f"{name}: {key} has the shape {list(actual)}, not {list(expected)}"
            for key, actual, expected in info.get("mismatched_keys", ())
        ]
        if problems:
            raise RcdeployError(
                f"the weights of the {name} in {self.folder} do not fit its config.json",
                fix="Copy the folder again, or save it anew with save_pretrained.",
                errors=problems[:MAX_LISTED_TENSORS],
            )
        return module

    def load(self, *names: str) -> None:
        """Loads components now, so that errors in them show before anything is computed."""
        for name in names:
            getattr(self, name)

    @property
    def unet(self) -> UNet2DConditionModel:
        return self._component("unet", UNet2DConditionModel, self.dtype)

    @property
    def text_encoder(self) -> CLIPTextModel:
        return self._component("text_encoder", CLIPTextModel, self.dtype)

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
        if "tokenizer" not in self._components:
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    self.folder / "tokenizer", trust_remote_code=False, local_files_only=True
                )
            except Exception as error:  # its Rust side and its many classes raise whatever they like
                raise RcdeployError(f"the tokenizer cannot be loaded from {self.folder}: {error}") from error
            length = tokenizer.model_max_length
            if tokenizer.pad_token is None or type(length) is not int or not 1 <= length <= MAX_CONTEXT:
                raise RcdeployError(
                    f"{self.folder / 'tokenizer'}: it has the padding token {tokenizer.pad_token!r} and the "
                    f"model_max_length {length!r}; it needs a token, and 1 to {MAX_CONTEXT:,}",
                    fix="Copy tokenizer_config.json from the model again.",
                )
            self._components["tokenizer"] = tokenizer
        return self._components["tokenizer"]

    def _tokens(self, prompts: Sequence[str]) -> Any:
        """Token ids and mask. Raises RcdeployError for a tokenizer whose tokens the text encoder does not know."""
        config, length = self.text_encoder.config, self.tokenizer.model_max_length
        try:
            tokens = self.tokenizer(
                list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
        except Exception as error:  # of its Rust side
            raise RcdeployError(f"the tokenizer in {self.folder} cannot read a prompt: {error}") from error
        if tokens.input_ids.shape[1] > config.max_position_embeddings or tokens.input_ids.max() >= config.vocab_size:
            raise RcdeployError(
                f"the tokenizer in {self.folder} does not belong to the text encoder, which knows "
                f"{config.vocab_size:,} tokens and reads {config.max_position_embeddings} of them",
                fix="Copy the folder tokenizer/ of the model again.",
            )
        return tokens

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """n prompts -> a condition of n rows; prompts beyond the context are cut. The null condition is that of ""."""
        tokens = self._tokens(prompts)
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        with torch.no_grad():
            embeds = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask).last_hidden_state
        return Condition(embeds)

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
    if not is_hub_name(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*/*.safetensors"]
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns, ignore_patterns=["*.fp16.*"]))
    except Exception as error:
        raise RcdeployError(
            f"{path} is not a local folder and cannot be fetched from the hub: {error}",
            fix="Check the name and the network, or set teacher.path to a diffusers folder on this machine.",
        ) from error
