"""One safetensors file in the layout of the original Stable Diffusion release, for programs that read that.

diffusers' from_single_file reads every student whose stages have one number of layers, told its config; others, and
parts that the layout has no names for, are refused. stable-diffusion.cpp and web UIs derive the UNet's
shape from its keys or assume SD-1.x, and refuse most students: docs/compatibility.md has the table.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_config import has_wavelet_gating
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


def write_single_file(model: LatentDiffusionModel, file: Path) -> None:
    """Writes UNet, VAE and text encoder of a diffusers folder to `file`, in the precision they are stored in.

    Raises RcdeployError for a VAE, and for parts of a UNet, that the layout has no names for.
    """
    if model.vae_config.get("_class_name") == "AutoencoderTiny":
        raise RcdeployError(
            f"{model.folder}: its VAE is an AutoencoderTiny, for which single files have no layout",
            fix="Take another format; programs that read single files take a tiny decoder as a file of its own.",
        )
    if model.has_two_text_encoders:
        raise RcdeployError(
            f"{model.folder} is an SDXL model, for which --format single-file has no layout yet",
            fix="Take --format onnx.",
        )
    config = model.unet_config
    if config.get("time_cond_proj_dim"):
        raise RcdeployError(
            f"{model.folder}: its UNet takes the guidance scale as an input, for which single files have no layout",
            fix="Export a package (onnx, openvino, trt): those have that input.",
        )
    if has_wavelet_gating(config):
        raise RcdeployError(
            f"{model.folder}: its UNet has wavelet gating, for which single files have no layout",
            fix="Export a package (onnx, openvino, trt): those run it without any code of ours.",
        )
    if len(set(_layers(config))) > 1:
        counts = "/".join(map(str, _layers(config)))
        raise RcdeployError(
            f"{model.folder}: its UNet's stages have {counts} layers, and readers of single files count on one number",
            fix="Export a package (onnx, openvino, trt), or give all stages the same number (student.layers).",
        )
    tensors = {UNET + unet_key(k, config): v for k, v in _weights(model.folder / "unet").items()}
    stages = len(model.vae_config["block_out_channels"])
    for key, value in _weights(model.folder / "vae").items():
        name = vae_key(key, stages)
        # there attention in the VAE is a convolution of 1 x 1
        convolution = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", name) and value.ndim == 2
        tensors[VAE + name] = value[:, :, None, None] if convolution else value
    for key, value in _weights(model.folder / "text_encoder").items():
        if not key.endswith("position_ids"):
            tensors[TEXT + ("" if key.startswith("text_model.") else "text_model.") + key] = value
    with replacing(file) as part:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, part)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def _weights(folder: Path) -> dict[str, Tensor]:
    files = [f for f in sorted(folder.glob("*.safetensors")) if ".fp16." not in f.name]
    return {k: v for f in files for k, v in load_file(f).items()}


def unet_key(key: str, config: dict[str, Any]) -> str:
    """The original layout's name of a UNet weight in diffusers' layout, for any number of stages and layers."""
    layers = _layers(config)
    outer = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for name, original in outer.items():
        if key.startswith(name + "."):
            return original + key.removeprefix(name)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        kind, index, rest = match.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_resnet(rest) if kind == 'resnets' else rest}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    assert match is not None, key
    direction, block, kind, index, rest = match.groups()
    i = int(block)
    j = int(index)
    if direction == "down":
        first = 1 + sum(n + 1 for n in layers[:i])  # a stage: its layers, and its downsampler
        if kind == "downsamplers":
            return f"input_blocks.{first + layers[i]}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + j}.{_place(kind, rest)}"
    up_layers = layers[::-1]
    first = sum(n + 1 for n in up_layers[:i])
    if kind == "upsamplers":
        has_attention = "CrossAttn" in config["up_block_types"][i]
        return f"output_blocks.{first + up_layers[i]}.{2 if has_attention else 1}.{rest}"
    return f"output_blocks.{first + j}.{_place(kind, rest)}"


def _layers(config: dict[str, Any]) -> list[int]:
    layers = config["layers_per_block"]
    return [layers] * len(config["block_out_channels"]) if isinstance(layers, int) else list(layers)


def _place(kind: str, rest: str) -> str:
    return f"1.{rest}" if kind == "attentions" else f"0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    name, end = rest.rsplit(".", 1)
    return f"{RESNET[name]}.{end}"


def vae_key(key: str, stages: int) -> str:
    """The original layout's name of a VAE weight in diffusers' layout; its decoder counts stages from the other end."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if match := re.match(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)$", key):
        return f"{match[1]}mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{stages - 1 - int(m[1])}.block.{m[2]}", key)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{stages - 1 - int(m[1])}.upsample", key)
