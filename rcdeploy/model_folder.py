"""What a word on the command line is: a run, a package, a diffusers folder, or the name of a student of SD-1.4."""

from __future__ import annotations

import difflib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.package import Package

from .model_config import check_single_text_encoder, native_latent_size, pixels_per_latent, read_unet_config
from .student.spec import SD14_UNET_CONFIG, STUDENTS, fitting_students, student_config

Config = dict[str, Any]
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
SD14 = "sd-1.4"
"""the teacher of the named students, itself a name; `rcdeploy students` calls it teacher"""
SD14_CONFIGS: dict[str, Config] = {
    "unet": SD14_UNET_CONFIG,
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    },
}
"""text encoder: CLIP ViT-L/14's. What is not named is the default of diffusers and transformers, as in the originals"""
TORCH = ("torch", "torch.compile")
FORMAT_BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino", "trt": "tensorrt"}
_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class Subject:
    """What is measured.

    kind: run, package, pipeline or student. source: as the user wrote it. folder: what a backend loads (a package may
    be a .zip); None for a student, which has no weights. configs: of unet, text_encoder and vae. bytes: of the weights
    by component. size: (height, width) in pixels that it draws by itself. size_multiple: of other sizes, in pixels.
    fixed: it draws no other size. backends: what can execute it, the usual one first. precision: of its UNet.
    """

    name: str
    kind: str
    source: str
    folder: Path | None
    configs: dict[str, Config]
    bytes: dict[str, int] | None
    size: tuple[int, int]
    size_multiple: int
    backends: tuple[str, ...]
    fixed: bool = False
    precision: str = "fp32"

    @property
    def text_length(self) -> int:
        """Tokens of a prompt."""
        return int(self.configs["text_encoder"].get("max_position_embeddings", 77))

    def latents(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels -> in latent pixels. Raises RcdeployError when this subject cannot draw it."""
        height, width = size
        if self.fixed and size != self.size:
            raise RcdeployError(
                f"{self.source} was exported for {shown(self.size)} pixels only, not for {shown(size)}",
                fix=f"Give --size {shown(self.size)} and no other sizes, or export it without --static.",
            )
        if min(size) < self.size_multiple or height % self.size_multiple or width % self.size_multiple:
            raise RcdeployError(
                f"{self.source} draws multiples of {self.size_multiple} pixels; {shown(size)} is none",
                fix=f"For example {shown(self.size)}.",
            )
        pixels = pixels_per_latent(self.configs["vae"])
        return height // pixels, width // pixels


def shown(size: tuple[int, int]) -> str:
    """(height, width) -> 'HxW', as --size takes it."""
    return f"{size[0]}x{size[1]}"


def find_subjects(words: Sequence[str], runs: Path = Path("runs")) -> list[Subject]:
    """A subject for each word; no words: the newest run below `runs`, behind its teacher if that is on this machine.

    Raises RcdeployError for a word that is nothing that can be measured.
    """
    if not words:
        run = newest_run(runs)
        teacher = Path(Manifest.read(run, "run").recipe.get("teacher", {}).get("path") or "")
        words = [str(p) for p in (teacher, run) if (p / NAME).is_file() or (p / "model_index.json").is_file()]
    found = [_find(word) for word in dict.fromkeys(words)]
    names = [subject.name for subject in found]
    return [s if names.count(s.name) == 1 else Subject(**{**vars(s), "name": s.source}) for s in found]


def newest_run(runs: Path) -> Path:
    """The run below `runs` whose pipeline was written last. Raises RcdeployError when none is finished."""
    finished = [m.parent for m in runs.glob(f"*/{NAME}") if (m.parent / "pipeline" / "model_index.json").is_file()]
    if not finished:
        raise RcdeployError(
            f"there is no finished run in {runs.resolve()}",
            fix="Make one with: rcdeploy distill recipes/quickstart.toml. Or name the folder that is meant.",
        )
    return max(finished, key=lambda run: (run / "pipeline").stat().st_mtime)


def _find(word: str) -> Subject:
    if word in STUDENTS or word in (SD14, "teacher"):
        return _student(word)
    path = Path(word)
    if not path.exists():
        names = [SD14, *fitting_students(SD14_UNET_CONFIG)]
        near = difflib.get_close_matches(word.lower(), names, 1, 0.6)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise RcdeployError(
            f"{word} is no file or folder here, and no student of SD-1.4",
            fix=f"{hint}Students: {', '.join(names)}.",
        )
    if path.is_file() or (path / NAME).is_file():
        manifest = read_json(path / NAME) if path.is_dir() else {"kind": "package"}
        kind = manifest.get("kind") if isinstance(manifest, dict) else None
        if kind == "package":
            return _package(word)
        if kind == "run":
            return _run(word)
        raise RcdeployError(
            f"{word} is a {kind or 'folder with a foreign ' + NAME}, which draws nothing",
            fix="Give a run, a package, a diffusers folder, or the name of a student.",
        )
    if (path / "model_index.json").is_file():
        return _pipeline(word, path, "pipeline")
    raise RcdeployError(
        f"{word} is neither a run, nor a package, nor a diffusers folder: it has no {NAME} and no model_index.json",
        fix="Give a folder under runs/ or packages/, or one that StableDiffusionPipeline.save_pretrained wrote.",
    )


def _student(word: str) -> Subject:
    configs = dict(SD14_CONFIGS)
    if word in STUDENTS:
        configs["unet"], _ = student_config(word, SD14_UNET_CONFIG)
    name = word if word in STUDENTS else SD14
    return Subject(name, "student", word, None, configs, None, (512, 512), pixels_per_latent(configs["vae"]), TORCH)


def _run(word: str) -> Subject:
    Manifest.read(Path(word), "run")
    if not (Path(word) / "pipeline" / "model_index.json").is_file():
        raise RcdeployError(
            f"{word} has no pipeline/ yet: its training has not ended",
            fix="Run the same rcdeploy distill command again; it goes on where it stopped.",
        )
    return _pipeline(word, Path(word) / "pipeline", "run")


def _pipeline(word: str, folder: Path, kind: str) -> Subject:
    unet = read_unet_config(folder)
    check_single_text_encoder(word, unet)
    configs: dict[str, Config] = {
        "unet": unet,
        "text_encoder": read_json(folder / "text_encoder" / "config.json"),
        "vae": read_json(folder / "vae" / "config.json"),
    }
    weights = {
        "text_encoder": _weight_bytes(folder / "text_encoder"),
        "unet": _weight_bytes(folder / "unet"),
        "vae_decoder": _weight_bytes(folder / "vae", "decoder.", "post_quant_conv."),
    }
    pixels = pixels_per_latent(configs["vae"])
    height, width = native_latent_size(unet)
    size = height * pixels, width * pixels
    return Subject(Path(word).resolve().name, kind, word, folder, configs, weights, size, pixels, TORCH)


def _package(word: str) -> Subject:
    package = Package(word)
    manifest, facts = package.manifest, package.manifest.facts
    named = (("unet", "unet"), ("text_encoder", "text_encoder"), ("vae", "vae_decoder"))
    configs = {name: package.json(f"{folder}/config.json") for name, folder in named}
    weights = {c: manifest.size_of(c) for c in COMPONENTS}
    pixels, fixed = pixels_per_latent(configs["vae"]), facts.get("static_size")
    try:
        _, high, wide = manifest.latents["shape"]
        size = (int(fixed[0]), int(fixed[1])) if fixed else (int(high) * pixels, int(wide) * pixels)
        multiple = int(facts["size_multiple"])
    except (KeyError, TypeError, ValueError) as error:
        raise RcdeployError(f"{word}: its manifest lacks {error}", fix="Export it anew.") from None
    precision = str(facts.get("precision", {}).get("unet", "fp32"))
    backends = (FORMAT_BACKENDS[package.format],)
    name = Path(word).resolve().name
    return Subject(
        name, "package", word, Path(word), configs, weights, size, multiple, backends, bool(fixed), precision
    )


def _weight_bytes(folder: Path, *prefixes: str) -> int:
    """Bytes of the tensors in the folder's safetensors, those whose names start so; read from the files' heads."""
    files = [f for f in sorted(folder.glob("*.safetensors")) if _WEIGHTS.fullmatch(f.name)]
    if not files:
        raise RcdeployError(
            f"{folder} has no weights in .safetensors", fix="Pickled .bin and .ckpt files are never opened."
        )
    total = 0
    for file in files:
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                head = json.loads(opened.read(min(length, 2**27)))
            spans = [t["data_offsets"] for n, t in head.items() if n != "__metadata__" and n.startswith(prefixes or "")]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RcdeployError(f"{file} is no safetensors file: {error}", fix="Copy it again.") from None
        total += sum(end - start for start, end in spans)
    return total
