"""What lies in a package beside its networks: shared files of diffusers' layout, the manifest, the preview's matrix."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_config import trimmed_model_index
from rcdeploy.sampling import starting_noise
from rcdeploy_runtime.files import read_json, write_json
from rcdeploy_runtime.manifest import Manifest

from .components import Component, halvings
from .parity import Parity
from .settings import Settings
from .source import Source


def copy_shared(source: Source, teacher: LatentDiffusionModel, folder: Path) -> None:
    """What diffusers' folder and the package have in common: index, configurations, tokenizer, schedule."""
    index = read_json(source.folder / "model_index.json")
    write_json(folder / "model_index.json", trimmed_model_index(index))
    shutil.copytree(source.folder / "scheduler", folder / "scheduler")
    teacher.tokenizer.save_pretrained(folder / "tokenizer")
    _write_vocabulary(folder / "tokenizer")
    for name, of in (("text_encoder",) * 2, ("unet",) * 2, ("vae_decoder", "vae"), ("vae_encoder", "vae")):
        (folder / name).mkdir()
        shutil.copyfile(source.folder / of / "config.json", folder / name / "config.json")


def _write_vocabulary(tokenizer: Path) -> None:
    """vocab.json and merges.txt out of tokenizer.json: transformers 4 reads these, and 5 does not write them."""
    model = read_json(tokenizer / "tokenizer.json")["model"]
    write_json(tokenizer / "vocab.json", model["vocab"])
    merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def package_manifest(
    source: Source,
    teacher: LatentDiffusionModel,
    settings: Settings,
    parities: Sequence[Parity],
    parts: Sequence[Component],
    folder: Path,
) -> Manifest:
    run = source.run
    facts: dict[str, Any] = {
        "format": "onnx" if settings.format == "trt" else settings.format,  # engines are built from it
        "target": settings.format,
        "precision": {p.name: settings.precision_of(p.name) for p in parts},
        "opset": settings.resolved_opset,
        "parity": [p.as_dict() for p in parities],
        "pixels_per_latent": teacher.pixels_per_latent,
        "size_multiple": teacher.pixels_per_latent * 2 ** halvings(teacher.unet_config),
        "latent_to_rgb": latent_to_rgb(teacher),
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
        "source": source.name,
        "student": run.facts.get("student") if run else None,
    }
    return Manifest(
        kind="package",
        recipe=source.recipe,
        teacher=run.teacher if run else teacher.identity,
        noise_schedule=dict(read_json(source.folder / "scheduler" / "scheduler_config.json")),
        latents={"shape": list(teacher.latent_shape()), "scaling_factor": teacher.scaling_factor},
        onnx={p.name: _io(folder / p.name / "model.onnx") for p in parts},
        made_from=source.made_from(),
        facts=facts,
    )


def _io(file: Path) -> dict[str, Any]:
    """Names, types and shapes of a graph's inputs and outputs; open dimensions by their names."""
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
def latent_to_rgb(teacher: LatentDiffusionModel, latents: int = 1024) -> list[list[float]]:
    """[channels + 1, 3]: the linear map (last row: constant) from scaled latents to small pictures in [0, 1].

    Least squares over what the decoder makes of smooth random latents: for previews, which it serves well enough.
    latents: how many pixels of them, in as few pictures as have so many (one of SD's takes seconds and a gigabyte).
    """
    _, h, w = teacher.latent_shape()
    noise = starting_noise(0, range(max(1, latents // (h * w))), teacher.latent_shape())
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False) * 2
    small: Tensor = torch.nn.functional.avg_pool2d(teacher.decode(smooth), teacher.pixels_per_latent)
    x = smooth.movedim(1, -1).reshape(-1, smooth.shape[1]).numpy()
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    fitted = np.linalg.lstsq(x, small.movedim(1, -1).reshape(-1, 3).numpy(), rcond=None)[0]
    return [[round(float(v), 5) for v in row] for row in fitted]
