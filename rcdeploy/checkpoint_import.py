"""A checkpoint in one .safetensors file, in the layout of the original Stable Diffusion release, to a diffusers folder.

Most fine-tunes of SD-1.5 are shared like this. Such a file holds weights alone: configs of SD-1.x are built in, the
tokenizer comes from a folder, and for other architectures (SD-2.x) all of it comes from a diffusers folder.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder, write_json

from .model_config import SD1_TOKENIZER, checkpoint_help
from .model_files import model_file
from .progress import Log
from .student.sd14 import SD14_CONFIGS

CONFIG_FILES = ("scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""of which a tokenizer needs the first, or the third and the fourth"""
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SD1_SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
"""[channels, width of the prompt embeddings]"""
MAX_HEADER_BYTES = 2**27


def import_checkpoint(
    file: Path, out: Path, *, config: Path | None = None, tokenizer: Path | None = None, log: Log
) -> None:
    """Writes the diffusers folder `out` from a single-file checkpoint, in the precision of its weights.

    Args:
        file: .safetensors in the original layout, with UNet, VAE and text encoder.
        out: the folder; it must not exist.
        config: a diffusers folder of the same architecture, from which configs, noise schedule and tokenizer are
            taken (its weights are not read); None: built-in configs of SD-1.x.
        tokenizer: the folder of CLIP's tokenizer; needed without `config`.
        log: receives remarks for a person.

    Raises:
        RcdeployError: the file is not such a checkpoint, the configs do not fit it, or a file is missing.
    """
    if out.exists():
        raise RcdeployError(f"{out} exists", fix="Give --out a new folder.")
    dtype, embed_width = read_checkpoint_header(file)
    if config is None:
        _check_sd1(file, embed_width)
    with tempfile.TemporaryDirectory() as layout:
        _write_layout(Path(layout), file, config, tokenizer)
        log(f"reading {file}")
        pipeline = _load(file, Path(layout), dtype)
        with new_folder(out) as folder:
            pipeline.save_pretrained(folder)
            _check(folder)


def read_checkpoint_header(file: Path) -> tuple[str, int]:
    """(name of the UNet's dtype in safetensors, width of its prompt embeddings), without reading weights.

    Raises RcdeployError when the file is not a checkpoint in the original layout.
    """
    if file.suffix in (".ckpt", ".pt", ".bin"):
        raise RcdeployError(
            f"{file} may hold pickled code, which is never opened", fix="Most models are shared as .safetensors too."
        )
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        if CROSS_ATTENTION not in header:
            _refuse_layout(file, header)
        tensor = header[CROSS_ATTENTION]
        return str(tensor["dtype"]), int(tensor["shape"][1])
    except OSError as error:
        raise RcdeployError(f"{file} cannot be read: {error.strerror or error}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise RcdeployError(f"{file} is not a safetensors file", fix="Copy it again.") from None


def _refuse_layout(file: Path, header: dict[str, Any]) -> NoReturn:
    if any(key.startswith(("down_blocks.", "unet.")) for key in header):
        raise RcdeployError(
            f"{file} is a network in diffusers' layout, not a whole model",
            fix="Give the folder that it belongs to (with model_index.json) instead.",
        )
    raise RcdeployError(
        f"{file} holds no UNet in the layout of Stable Diffusion 1.x or 2.x",
        fix="LoRAs and single networks cannot be imported, nor can SDXL and later models.",
    )


def _check_sd1(file: Path, embed_width: int) -> None:
    expected = SD14_CONFIGS["unet"]["cross_attention_dim"]
    if embed_width != expected:
        raise RcdeployError(
            f"{file} is not SD-1.x: its prompt embeddings have {embed_width} values, there they have {expected}",
            fix="Give --config a diffusers folder of the same architecture.",
        )


def _write_layout(layout: Path, file: Path, config: Path | None, tokenizer: Path | None) -> None:
    """Writes a diffusers folder without weights, of files and class names that are known."""
    write_json(layout / "model_index.json", MODEL_INDEX)
    if config is not None:
        for name in CONFIG_FILES:
            (layout / name).parent.mkdir()
            shutil.copyfile(model_file(config, name), layout / name)
        _copy_tokenizer(tokenizer or config / "tokenizer", layout / "tokenizer")
        return
    if tokenizer is None:
        raise RcdeployError(f"{file} holds no tokenizer, as no single file does", fix=checkpoint_help(file))
    for name, values in SD14_CONFIGS.items():
        write_json(layout / name / "config.json", values)
    write_json(layout / "scheduler" / "scheduler_config.json", SD1_SCHEDULER_CONFIG)
    _copy_tokenizer(tokenizer, layout / "tokenizer")


def _copy_tokenizer(source: Path, target: Path) -> None:
    names = [name for name in TOKENIZER_FILES if (source / name).exists()]
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise RcdeployError(
            f"{source} holds no tokenizer: neither tokenizer.json nor vocab.json and merges.txt",
            fix=f"SD-1.x has that of {SD1_TOKENIZER}, on the hub.",
        )
    target.mkdir()
    for name in names:
        shutil.copyfile(model_file(source, name), target / name)


def _load(file: Path, layout: Path, dtype: str) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    torch_dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(dtype, torch.float32)
    try:
        return StableDiffusionPipeline.from_single_file(
            str(file), config=str(layout), local_files_only=True, torch_dtype=torch_dtype
        )
    except NotImplementedError:  # a tensor that was never filled is moved
        raise RcdeployError(
            f"{file} lacks tensors that the configs ask for", fix="It may be pruned: a whole model has all of them."
        ) from None
    except Exception as error:  # diffusers raises what its conversion of keys runs into: KeyError, RuntimeError ...
        raise RcdeployError(
            f"{file} does not fit the configs: {type(error).__name__}: {error}",
            fix="Give --config a diffusers folder of the same architecture.",
        ) from error


def _check(folder: Path) -> None:
    """Loads what was written: tensors that the file lacked are found here."""
    from .diffusion_model import LatentDiffusionModel

    model = LatentDiffusionModel(str(folder))
    model.load("text_encoder", "unet", "vae", "tokenizer")
