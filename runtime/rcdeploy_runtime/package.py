"""A package is data: opened, checked, and nothing in it executed, unpickled, or read from outside its folder."""

from __future__ import annotations

import math
import shutil
import stat
import tempfile
import weakref
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import typed
from .archive import unpack
from .digests import DigestCache
from .errors import RcdeployError
from .executorch_session import PROGRAM, SIGNATURE
from .files import inside, read_json
from .generation import ImageSize
from .graph_checks import check_graph
from .limits import (
    MAX_GUIDANCE_SCALE,
    MAX_JSON_BYTES,
    MAX_LATENT_SIDE,
    MAX_PACKAGE_BYTES,
    MAX_PIXELS_PER_LATENT,
    MAX_SCALING_FACTOR,
    MAX_TRAIN_TIMESTEPS,
)
from .manifest import NAME, Manifest
from .pins import check_digest, manifest_digest, validate_digest
from .sampling_defaults import SamplingDefaults

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder", "text_encoder_2")
NETWORK_FILES = {
    "onnx": ("model.onnx",),
    "openvino": ("openvino_model.xml", "openvino_model.bin"),
    "trt": ("model.engine",),
    "executorch": (PROGRAM, SIGNATURE),
}
"""format -> the files of a component that a session opens"""
SHARED_FILES = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json")
SECOND_TOKENIZER = ("tokenizer_2/tokenizer.json", "tokenizer_2/tokenizer_config.json")
OLD_PRECISION = {"onnx": "int8-matmul", "openvino": "int8-weights"}
"""what "mixed" meant in packages of either format"""


@dataclass(frozen=True)
class SdxlFacts:
    """How a package with two text encoders reads a prompt.

    hidden_states: names of the outputs of text_encoder and text_encoder_2 that make up the prompt's embeddings; the
    pooled text is the second's output text_embeds. zeros_for_empty_prompt: the null condition is zeros.
    """

    hidden_states: tuple[str, str]
    zeros_for_empty_prompt: bool


@dataclass(frozen=True)
class PackageFacts:
    """The facts of a package's manifest.

    format: onnx, openvino, trt or executorch. target: the format that it was exported for. precision: by component.
    parity: one entry a component, {"component", "max_abs_error", "relative_error", "shapes"}. pixels_per_latent: a
    latent's side in pixels. size_multiple: height and width are multiples of it. latent_to_rgb: [channels + 1][3], for
    previews.
    static_size: (height, width) of a package that generates one size only. captions: the file of captions that the
    model is used with. sampling: how it wants to be sampled; None in packages of rcdeploy 0.1. judge: the classifier
    that evaluates it, {"teacher", "folder", "digest"}, which lies beside the teacher or in judge/. sdxl: of packages
    with two text encoders. guidance_embedding: width of the embedding of the guidance scale, where the UNet takes it
    and so needs one call a step. The others: what the export measured, and how TensorRT engines were built.
    """

    format: str
    pixels_per_latent: int
    size_multiple: int
    target: str = ""
    precision: Mapping[str, str] = field(default_factory=dict)
    opset: int | None = None
    parity: tuple[Mapping[str, Any], ...] = ()
    latent_to_rgb: tuple[tuple[float, ...], ...] = ()
    static_size: tuple[int, int] | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    student: Any = None
    unet_error_by_timestep: tuple[Mapping[str, Any], ...] = ()
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""
    pictures: Mapping[str, Any] = field(default_factory=dict)
    engines: Mapping[str, Any] = field(default_factory=dict)
    captions: str | None = None
    sampling: SamplingDefaults | None = None
    judge: Mapping[str, Any] = field(default_factory=dict)
    sdxl: SdxlFacts | None = None
    guidance_embedding: int | None = None

    def precision_of(self, component: str) -> str:
        """fp32, fp16, bf16, int8, int8-matmul (ONNX) or int8-weights (OpenVINO)."""
        precision = self.precision.get(component, "fp32")
        return OLD_PRECISION.get(self.format, precision) if precision == "mixed" else precision


@dataclass(frozen=True)
class LatentFacts:
    """The latents of a package's manifest. shape: (channels, height, width)."""

    shape: tuple[int, int, int]
    scaling_factor: float


class Package:
    """An opened package.

    folder: where its files lie (a .zip is unpacked into a private temporary folder that goes when the package does).
    manifest, facts, latents: what it says of itself.
    digest: "sha256:...", of manifest.json and so of every file that it lists.
    """

    def __init__(self, path: str | Path, *, verify: bool = True, digest: str | None = None) -> None:
        """Args:
            path: a folder, or its .zip.
            verify: compare every file with its sha256 in the manifest (remembered per file until it changes).
            digest: the one that the package must have, checked before anything of it is parsed.

        Raises:
            RcdeployError: the package is damaged (the file is named), truncated, newer, foreign, or of another digest.
        """
        if not isinstance(path, (str, Path)) or "\0" in str(path):
            raise RcdeployError(f"package is {path!r}; it must be the path of a folder or a .zip")
        validate_digest(digest, verify)
        self.path = Path(path)
        self.folder = self._open_folder(digest)
        if not (self.folder / NAME).is_file() and (self.folder / "model_index.json").is_file():
            raise RcdeployError(
                f"{path} is a diffusers or Optimum folder, not a package: it has no {NAME}",
                fix=f"Make one from it with: rcdeploy export {path}",
            )
        _check_json_size(self.folder / NAME)
        if (self.folder / NAME).is_file():
            check_digest(self.folder / NAME, digest, self.path)
        self.manifest = Manifest.read(self.folder, "package")
        self.digest = manifest_digest(self.folder / NAME)
        self.format = str(self.manifest.facts.get("format", ""))
        if self.format == "coreml":
            raise RcdeployError(
                f"{path} is a Core ML package: apps on iOS and macOS open it (examples/embed/ios.md), Python does not",
                fix="For this runtime export the model with --format onnx.",
            )
        if self.format not in NETWORK_FILES:
            raise RcdeployError(
                f"{path} has the format {self.format!r}; this runtime reads {', '.join(NETWORK_FILES)}",
                fix="Upgrade rcdeploy-runtime.",
            )
        self.facts = self.manifest.facts_as(PackageFacts)
        self.latents = typed.from_json(LatentFacts, self.manifest.latents, f"{self.manifest.source}: latents")
        self._check_facts()
        self._check_files(verify)

    def _open_folder(self, digest: str | None) -> Path:
        if self.path.is_dir():
            return self.path
        if not self.path.is_file() or not zipfile.is_zipfile(self.path):
            raise RcdeployError(
                f"{self.path} is no package: {'not a zip archive' if self.path.is_file() else 'nothing is there'}",
                fix="Make one with: rcdeploy export RUN",
            )
        folder = Path(tempfile.mkdtemp(prefix="rcdeploy-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            unpack(self.path, folder, digest)
        except BaseException:
            self._cleanup()
            raise
        return folder

    def _check_facts(self) -> None:
        facts = self.facts
        channels, height, width = self.latents.shape
        bounds = [
            ("facts.pixels_per_latent", facts.pixels_per_latent, 1, MAX_PIXELS_PER_LATENT),
            ("facts.size_multiple", facts.size_multiple, 1, MAX_PIXELS_PER_LATENT * MAX_LATENT_SIDE),
            *((f"latents.shape[{i}]", n, 1, MAX_LATENT_SIDE) for i, n in enumerate((channels, height, width))),
        ]
        if facts.guidance_embedding is not None:
            bounds.append(("facts.guidance_embedding", facts.guidance_embedding, 4, MAX_LATENT_SIDE))
        if facts.sampling is not None:
            bounds.append(
                ("facts.sampling.num_inference_steps", facts.sampling.num_inference_steps, 1, MAX_TRAIN_TIMESTEPS)
            )
        errors = [
            f"{name}: {n} does not lie between 1 and {high:,}" for name, n, low, high in bounds if not low <= n <= high
        ]
        factor = self.latents.scaling_factor
        if not 0 < factor <= MAX_SCALING_FACTOR:
            errors.append(f"latents.scaling_factor: {factor} does not lie between 0 and {MAX_SCALING_FACTOR:,}")
        guidance = self.sampling.guidance_scale
        if not 0 <= guidance <= MAX_GUIDANCE_SCALE:
            errors.append(
                f"facts.sampling.guidance_scale: {guidance} does not lie between 0 and {MAX_GUIDANCE_SCALE:,}"
            )
        if not all(math.isfinite(x) for row in facts.latent_to_rgb for x in row):
            errors.append("facts.latent_to_rgb: not all numbers are finite")
        if errors:
            raise RcdeployError(
                f"{self.manifest.source} has values out of range:", errors=errors, fix="Export it anew."
            )

    def _check_files(self, verify: bool) -> None:
        digests = DigestCache() if verify else None
        if self.manifest.size_of() > MAX_PACKAGE_BYTES:
            raise RcdeployError(f"{self.path} would have more than {MAX_PACKAGE_BYTES:,} bytes")
        for name, expected in self.manifest.files.items():
            file = self.file(name)
            size = file.stat().st_size
            if size != expected["size"]:
                raise RcdeployError(
                    f"{self.path}: {name} has {size:,} bytes, its manifest says {expected['size']:,}",
                    fix="It was cut short or changed. Copy the whole package again.",
                )
            if digests and digests.sha256(file) != expected["sha256"]:
                raise RcdeployError(
                    f"{self.path}: the contents of {name} are not those that were packed",
                    fix="It was damaged or changed. Copy the whole package again, or export it anew.",
                )
        if digests:
            digests.save()
        second = ("text_encoder_2",) if self.facts.sdxl else ()
        components = (*COMPONENTS[:3], *second)
        required = [f"{component}/{file}" for component in components for file in NETWORK_FILES[self.format]]
        for name in (*SHARED_FILES, *(SECOND_TOKENIZER if second else ()), *required):
            if name not in self.manifest.files:
                raise RcdeployError(f"{self.path}: its manifest lists no {name}", fix="Export it anew.")
        for name in self.manifest.files:
            check_graph(self.file(name), name, self.manifest.files)

    @property
    def sampling(self) -> SamplingDefaults:
        """Sampler, steps and guidance that it is made for."""
        return self.facts.sampling or SamplingDefaults()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the latents' shape."""
        _, height, width = self.latents.shape
        return height * self.facts.pixels_per_latent, width * self.facts.pixels_per_latent

    @property
    def image_size(self) -> ImageSize:
        """The sizes that it generates."""
        facts = self.facts
        fixed = facts.static_size is not None
        return ImageSize(*(facts.static_size or self.size), facts.size_multiple, facts.pixels_per_latent, fixed)

    @property
    def has_encoder(self) -> bool:
        """Whether it can change images (img2img, inpainting), and not only draw from prompts."""
        return f"vae_encoder/{NETWORK_FILES[self.format][0]}" in self.manifest.files

    def file(self, relative: str) -> Path:
        """The path of a file that the manifest lists: the one door through which files of a package are opened.

        Raises RcdeployError when it is not listed, missing, no regular file, or outside the folder.
        """
        if relative not in self.manifest.files:
            raise RcdeployError(f"{self.path}: {relative} is not in its manifest", fix="Export it anew.")
        file = inside(self.folder, relative)
        try:
            mode = file.stat().st_mode
        except OSError:
            raise RcdeployError(f"{self.path}: {relative} is missing", fix="Copy the whole package again.") from None
        if not stat.S_ISREG(mode):
            raise RcdeployError(f"{self.path}: {relative} is no regular file")
        return file

    def json(self, relative: str) -> dict[str, Any]:
        """The object in a JSON file that the manifest lists."""
        data = read_json(_check_json_size(self.file(relative)))
        if not isinstance(data, dict):
            raise RcdeployError(f"{self.path}: {relative} holds no JSON object")
        return data


def _check_json_size(file: Path) -> Path:
    if file.is_file() and file.stat().st_size > MAX_JSON_BYTES:
        raise RcdeployError(f"{file} is too large to be what it is called ({file.stat().st_size:,} bytes)")
    return file
