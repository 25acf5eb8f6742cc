"""Files of a package beside its networks: configs, tokenizer, noise schedule, captions, manifest."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from rcdeploy.decoder.folder import TinyDecoder
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.judge_files import JUDGE_FILES, JUDGE_FOLDER, judge_digest
from rcdeploy.model_config import size_multiple, trimmed_model_index, zeros_for_empty_prompt
from rcdeploy.model_files import model_file
from rcdeploy.sampling import starting_noise
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.executorch_session import SIGNATURE
from rcdeploy_runtime.files import read_json, write_json
from rcdeploy_runtime.manifest import Manifest

from .calibration import packaged_captions
from .components import Component
from .export_options import ExportOptions
from .parity import Parity
from .source import ExportSource

CAPTIONS = "captions.txt"
PATH_KEY = "_name_or_path"
"""where diffusers notes the folder on this machine that a config was read from"""
CONFIGS = {
    "text_encoder/config.json": "text_encoder/config.json",
    "text_encoder_2/config.json": "text_encoder_2/config.json",
    "unet/config.json": "unet/config.json",
    "vae_decoder/config.json": "vae/config.json",
    "vae_encoder/config.json": "vae/config.json",
    "scheduler/scheduler_config.json": "scheduler/scheduler_config.json",
}
"""file in the package -> file in the diffusers folder that it is copied from; nothing else is"""


def copy_configs(
    source: ExportSource,
    model: LatentDiffusionModel,
    networks: Sequence[Component],
    decoder: TinyDecoder | None,
    folder: Path,
) -> None:
    """Writes model index, configs, tokenizer and noise schedule as diffusers lays them out, and known captions."""
    index = read_json(model_file(source.folder, "model_index.json"))
    if decoder:
        index["vae"] = ["diffusers", "AutoencoderTiny"]
    write_json(folder / "model_index.json", trimmed_model_index(index))
    packed = {network.name for network in networks}
    for target, original in CONFIGS.items():
        component = Path(target).parent.name
        if component in packed or component == "scheduler":
            (folder / component).mkdir(exist_ok=True)
            config = read_json(model_file(source.folder, original))
            config = {k: v for k, v in config.items() if k != PATH_KEY} | context_length(model, component)
            write_json(folder / target, config)
    if decoder:
        # whoever reads the package divides latents by this factor, and the graph multiplies them again
        config = {k: v for k, v in decoder.network.config.items() if k != PATH_KEY}
        write_json(
            folder / "vae_decoder/config.json",
            {"_class_name": "AutoencoderTiny", **config, "scaling_factor": model.scaling_factor},
        )
    for name, tokenizer in tokenizers(model).items():
        tokenizer.save_pretrained(folder / name)
        _write_vocabulary(folder / name)
    captions = packaged_captions(source)
    if captions:
        (folder / CAPTIONS).write_text("\n".join(captions) + "\n", encoding="utf-8")


def context_length(model: LatentDiffusionModel, component: str) -> dict[str, int]:
    """Of a text encoder: how many tokens its graph takes, as its config says it; nothing of other components.

    The network may have positions for more than its tokenizer makes, as the embedded teachers' have; openvino-genai
    passes as many tokens as the config says.
    """
    if not component.startswith("text_encoder"):
        return {}
    tokenizer = tokenizers(model)[component.replace("text_encoder", "tokenizer")]
    return {"max_position_embeddings": int(tokenizer.model_max_length)}


def tokenizers(model: LatentDiffusionModel) -> dict[str, Any]:
    """By folder."""
    return {name: getattr(model, name) for name in model.components if name.startswith("tokenizer")}


def copy_judge(source: ExportSource, folder: Path) -> None:
    """Raises RcdeployError when there is no judge beside the teacher."""
    if source.judge is None:
        raise RcdeployError(
            f"--judge: there is no judge beside the teacher ({source.teacher_folder}/{JUDGE_FOLDER})",
            fix="Leave --judge out.",
        )
    (folder / JUDGE_FOLDER).mkdir()
    for name in JUDGE_FILES:
        if (source.judge / name).exists():
            shutil.copyfile(model_file(source.judge, name), folder / JUDGE_FOLDER / name)


def _write_vocabulary(tokenizer: Path) -> None:
    """vocab.json and merges.txt out of tokenizer.json: transformers 4 reads these, and 5 does not write them."""
    model = read_json(tokenizer / "tokenizer.json")["model"]
    write_json(tokenizer / "vocab.json", model["vocab"])
    merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def package_manifest(
    source: ExportSource,
    model: LatentDiffusionModel,
    options: ExportOptions,
    parities: Sequence[Parity],
    components: Sequence[Component],
    decoder: TinyDecoder | None,
    folder: Path,
) -> Manifest:
    """The manifest of the package in `folder`, its files not listed yet."""
    run = source.run
    teacher = run.teacher if run else model.identity
    facts: dict[str, Any] = {
        "format": "onnx" if options.format == "trt" else options.format,  # engines are built from it
        "target": options.format,
        "precision": {c.name: options.precision_of(c.name) for c in components},
        "opset": options.resolved_opset,
        "parity": [p.as_dict() for p in parities],
        "pixels_per_latent": model.pixels_per_latent,
        "size_multiple": model.pixels_per_latent * size_multiple(model.unet_config),
        "latent_to_rgb": latent_to_rgb(model),
        "versions": {"torch": torch.__version__, **_version_of(options.format)},
        "source": source.name,
        "export": options.as_facts(),
        "student": run.facts.get("student") if run else None,
    }
    if sampling := options.sampling or source.sampling:
        facts["sampling"] = dict(vars(sampling))
    if width := model.unet_config.get("time_cond_proj_dim"):
        facts["guidance_embedding"] = int(width)
    if model.has_two_text_encoders:
        facts["sdxl"] = {
            "hidden_states": [c.compared[0] for c in components if c.name.startswith("text_encoder")],
            "zeros_for_empty_prompt": zeros_for_empty_prompt(model.folder),
        }
    if (folder / CAPTIONS).is_file():
        facts["captions"] = CAPTIONS
    if source.judge is not None:
        facts["judge"] = {"teacher": teacher["id"], "folder": source.judge.name, "digest": judge_digest(source.judge)}
    return Manifest(
        kind="package",
        recipe=source.recipe,
        teacher=teacher,
        noise_schedule=dict(read_json(folder / "scheduler" / "scheduler_config.json")),
        latents={"shape": list(model.latent_shape()), "scaling_factor": model.scaling_factor},
        onnx={c.name: _inputs_and_outputs(folder / c.name) for c in components},
        made_from=[*source.made_from(), *([{"kind": "decoder", "sha256": decoder.digest}] if decoder else [])],
        facts=facts,
    )


def _version_of(format: str) -> dict[str, str]:
    """Of the library that wrote the networks: a program of ExecuTorch is read by its own version and newer ones."""
    library = {"executorch": "executorch", "coreml": "coremltools"}.get(format, "onnx")
    return {library: importlib.metadata.version(library)}


def _inputs_and_outputs(component: Path) -> dict[str, Any]:
    """Names, types and shapes of a network's inputs and outputs; dynamic dimensions by their names."""
    if (component / SIGNATURE).is_file():
        return dict(read_json(component / SIGNATURE))
    file = component / "model.onnx"
    if not file.is_file():
        return {}
    graph = onnx.load(file, load_external_data=False).graph

    def described(values: Any) -> dict[str, Any]:
        return {
            v.name: {
                "type": onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower(),
                "shape": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            }
            for v in values
        }

    return {"inputs": described(graph.input), "outputs": described(graph.output)}


@torch.no_grad()
def latent_to_rgb(model: LatentDiffusionModel, latent_pixels: int = 1024) -> list[list[float]]:
    """[channels + 1, 3]: the linear map (last row: constant) from scaled latents to small images in [0, 1].

    Least squares over decoded smooth random latents, accurate enough for previews. latent_pixels: to fit on, in as few
    images as have so many, of 32 x 32 at most: a whole one of SD's takes ten seconds.
    """
    channels, height, width = model.latent_shape()
    shape = (channels, min(32, height), min(32, width))
    count = max(1, latent_pixels // (shape[1] * shape[2]))
    noise = starting_noise(0, range(count), shape)
    latents = torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False) * 2
    images: Tensor = torch.nn.functional.avg_pool2d(model.decode(latents), model.pixels_per_latent)
    x = latents.movedim(1, -1).reshape(-1, shape[0]).numpy()
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    coefficients = np.linalg.lstsq(x, images.movedim(1, -1).reshape(-1, 3).numpy(), rcond=None)[0]
    return [[round(float(v), 5) for v in row] for row in coefficients]
