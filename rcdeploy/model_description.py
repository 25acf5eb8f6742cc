"""What is known of a model without loading it: the configs of its networks, weight bytes, image size, backends."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from .model_config import (
    has_wavelet_gating,
    model_components,
    native_latent_size,
    pixels_per_latent,
    read_supported_unet_config,
    size_multiple,
)
from .model_folder import Kind, ModelFolder
from .student.built_in import DEFAULT_TEACHER, TEACHERS, named_model
from .student.spec import student_config
from .units import image_size_text

Config = dict[str, Any]
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
"""the networks that draw an image"""
TORCH_BACKENDS = ("torch", "torch.compile")
FORMAT_BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino", "trt": "tensorrt", "executorch": "executorch"}
_WEIGHT_FILE = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
_MAX_SAFETENSORS_HEADER = 2**27


@dataclass(frozen=True)
class ModelDescription:
    """A model as its configs and files describe it.

    Attributes:
        name, kind, source: as in ModelFolder.
        folder: what a backend loads (a package may be a .zip); None for a student, which has no weights.
        configs: of unet, text_encoder (text_encoder_2) and vae.
        weight_bytes: by component, both text encoders together; None for a student.
        image_size: (height, width) in pixels of the images that it makes by default.
        size_multiple: heights and widths must be multiples of this, in pixels.
        backends: what can run it, the default first.
        is_static: it makes images of image_size only.
        precision: of its UNet.
        sampling: how it wants to be sampled.
    """

    name: str
    kind: Kind
    source: str
    folder: Path | None
    configs: dict[str, Config]
    weight_bytes: dict[str, int] | None
    image_size: tuple[int, int]
    size_multiple: int
    backends: tuple[str, ...]
    is_static: bool = False
    precision: str = "fp32"
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    @property
    def takes_guidance_scale(self) -> bool:
        """Whether its UNet takes the guidance scale as an input, and so needs one call a step."""
        return bool(self.configs["unet"].get("time_cond_proj_dim"))

    @property
    def text_length(self) -> int:
        """Tokens of a prompt."""
        return int(self.configs["text_encoder"].get("max_position_embeddings", 77))

    def latent_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels -> in latent pixels. Raises RcdeployError for a size that the model cannot make."""
        height, width = image_size
        native = image_size_text(self.image_size)
        if self.is_static and image_size != self.image_size:
            raise RcdeployError(
                f"{self.source} was exported for {native} pixels only, not for {image_size_text(image_size)}",
                fix=f"Give --size {native} and no other sizes, or export it without --static.",
            )
        if min(image_size) < self.size_multiple or height % self.size_multiple or width % self.size_multiple:
            raise RcdeployError(
                f"{self.source}: image sizes must be multiples of {self.size_multiple} pixels, "
                f"not {image_size_text(image_size)}",
                fix=f"For example {native}.",
            )
        pixels = pixels_per_latent(self.configs["vae"])
        return height // pixels, width // pixels


def describe_model(model: ModelFolder) -> ModelDescription:
    """Reads configs and file headers. Raises RcdeployError when they are missing, damaged, or of an unknown kind."""
    if model.kind == "student":
        return _describe_student(model)
    return _describe_package(model) if model.kind == "package" else _describe_pipeline(model)


def _describe_student(model: ModelFolder) -> ModelDescription:
    teacher, student = named_model(model.name) or (DEFAULT_TEACHER, None)
    configs = dict(TEACHERS[teacher])
    if student:
        configs["unet"], _ = student_config(student, configs["unet"])
    pixels = pixels_per_latent(configs["vae"])
    height, width = native_latent_size(configs["unet"])
    return ModelDescription(
        name=model.name,
        kind=model.kind,
        source=model.source,
        folder=None,
        configs=configs,
        weight_bytes=None,
        image_size=(height * pixels, width * pixels),
        size_multiple=_size_multiple(configs),
        backends=TORCH_BACKENDS,
    )


def _describe_pipeline(model: ModelFolder) -> ModelDescription:
    folder = model.require_pipeline()
    unet = read_supported_unet_config(folder)
    vae = read_json(folder / "vae" / "config.json")
    encoders = [name for name in model_components(unet) if name.startswith("text_encoder")]
    pixels = pixels_per_latent(vae)
    height, width = native_latent_size(unet)
    configs = {"unet": unet, "vae": vae, **{name: read_json(folder / name / "config.json") for name in encoders}}
    return ModelDescription(
        name=model.name,
        kind=model.kind,
        source=model.source,
        folder=folder,
        configs=configs,
        weight_bytes={
            "text_encoder": sum(_tensor_bytes(folder / name) for name in encoders),
            "unet": _tensor_bytes(folder / "unet"),
            "vae_decoder": _tensor_bytes(folder / "vae", "decoder.", "post_quant_conv."),
        },
        image_size=(height * pixels, width * pixels),
        size_multiple=_size_multiple(configs),
        backends=TORCH_BACKENDS,
        sampling=model.sampling or SamplingDefaults(),
    )


def _size_multiple(configs: dict[str, Config]) -> int:
    """In torch a UNet takes latents of any size, with wavelet gating those that halve at every stage but the last."""
    unet = configs["unet"]
    return pixels_per_latent(configs["vae"]) * (size_multiple(unet) if has_wavelet_gating(unet) else 1)


def _describe_package(model: ModelFolder) -> ModelDescription:
    package = Package(model.source)
    manifest = package.manifest
    config_folders = {"unet": "unet", "text_encoder": "text_encoder", "vae": "vae_decoder"}
    if package.facts.sdxl:
        config_folders["text_encoder_2"] = "text_encoder_2"
    configs = {name: package.json(f"{folder}/config.json") for name, folder in config_folders.items()}
    pixels = pixels_per_latent(configs["vae"])
    static = manifest.facts.get("static_size")
    try:
        _, latent_height, latent_width = manifest.latents["shape"]
        image_size = (int(latent_height) * pixels, int(latent_width) * pixels)
        if static:
            image_size = (int(static[0]), int(static[1]))
        size_multiple = int(manifest.facts["size_multiple"])
    except (KeyError, TypeError, ValueError) as error:
        raise RcdeployError(f"{model.source}: its manifest lacks {error}", fix="Export it again.") from None
    return ModelDescription(
        name=model.name,
        kind=model.kind,
        source=model.source,
        folder=model.path,
        configs=configs,
        weight_bytes={
            component: sum(manifest.size_of(name) for name in (component, f"{component}_2")) for component in COMPONENTS
        },
        image_size=image_size,
        size_multiple=size_multiple,
        backends=(FORMAT_BACKENDS[package.format],),
        is_static=bool(static),
        precision=str(manifest.facts.get("precision", {}).get("unet", "fp32")),
        sampling=package.sampling,
    )


def _tensor_bytes(folder: Path, *prefixes: str) -> int:
    """Bytes of the folder's tensors whose names start with a prefix, read from the safetensors' headers."""
    files = [f for f in sorted(folder.glob("*.safetensors")) if _WEIGHT_FILE.fullmatch(f.name)]
    if not files:
        raise RcdeployError(
            f"{folder} has no weights in .safetensors", fix="Pickled .bin and .ckpt files are never opened."
        )
    total = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(length, _MAX_SAFETENSORS_HEADER)))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans = [t["data_offsets"] for name, t in tensors.items() if name.startswith(prefixes or "")]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RcdeployError(f"{file} is no safetensors file: {error}", fix="Copy it again.") from None
        total += sum(end - start for start, end in spans)
    return total
