"""The package: every component exported and compared with torch, then sealed with a manifest, or not written at all."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from rcdeploy.sampling import starting_noise
from rcdeploy.teacher import Teacher
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder, read_json, replacing, write_json
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.sessions import Session, open_session

from .components import Component, components, halvings
from .onnx_graph import export_onnx
from .openvino_ir import require, to_openvino, tokenizer_to_openvino
from .parity import Parity, compare, shapes_to_try
from .precision import calibration_inputs, quality, quantise_onnx, seconds_per_step, verdict
from .source import Source

FORMATS = ("onnx", "openvino", "trt")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "mixed")
OPSETS = {"onnx": 23, "openvino": 20, "trt": 20}
"""23 has Attention and GroupNormalization as one node each, which halves ONNX Runtime's memory; 20 is what OpenVINO,
quantisation and the TensorRT of a Jetson read"""
Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Settings:
    """How to export.

    precision: of UNet and text encoder; the VAE stays fp32 unless vae_precision says otherwise (fp16 decoders of some
    models overflow into black pictures). opset: None takes the format's own. static: shapes fixed at one picture of the
    model's size (two rows in the UNet, for guidance). external_data: weights beside the graph even below 2 GB.
    """

    format: str = "onnx"
    precision: str = "fp32"
    vae_precision: str = "fp32"
    opset: int | None = None
    static: bool = False
    size: tuple[int, int] | None = None
    external_data: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("format", self.format, FORMATS),
            ("precision", self.precision, PRECISIONS),
            ("vae precision", self.vae_precision, ("fp32", "fp16")),
        ):
            if value not in allowed:
                raise RcdeployError(f"{name} {value!r} is none of {', '.join(allowed)}")
        if self.format == "onnx" and self.precision == "bf16":
            raise RcdeployError(
                "ONNX Runtime has no bf16 convolutions for the CPU",
                fix="--format openvino --precision bf16 does where the processor has it; for a GPU take fp16.",
            )
        if self.size and not self.static:
            raise RcdeployError("a size is fixed with --static only; without it the package draws any size")

    @property
    def resolved_opset(self) -> int:
        if self.opset is not None:
            return self.opset
        return 20 if self.precision in ("int8", "mixed") else OPSETS[self.format]


def export_package(source: Source, out: Path, settings: Settings, progress: Progress) -> Manifest:
    """Writes the package `out`. Raises RcdeployError, and leaves what was at `out`, when anything does not agree."""
    if out.exists() and not (out / NAME).is_file():
        raise RcdeployError(f"{out} is there and is no package", fix="Give --out another folder.")
    if settings.format == "openvino":
        require(settings.precision)  # what is not installed is said before minutes are spent
    teacher = source.teacher()
    teacher.load("text_encoder", "unet", "vae", "tokenizer")
    parts = components(teacher)
    unit = 2 ** halvings(teacher.unet_config)
    edge = int(teacher.unet_config["sample_size"])
    native = settings.size or (edge * teacher.pixels_per_latent,) * 2
    if any(x % (unit * teacher.pixels_per_latent) for x in native):
        raise RcdeployError(f"the size {native} is no multiple of {unit * teacher.pixels_per_latent} pixels")
    latent_size = native[0] // teacher.pixels_per_latent, native[1] // teacher.pixels_per_latent
    with new_folder(out) as folder:
        copy_shared(source, teacher, folder)
        parities: list[Parity] = []
        measured: dict[str, Any] = {}
        calibration = calibration_inputs(source, teacher) if settings.precision != "fp32" else []
        for index, part in enumerate(parts):
            progress("export", index, len(parts), {})
            precision = _precision(part.name, settings)
            static = None
            if settings.static:
                static = (2 if part.name == "unet" else 1, *latent_size)
            rows = calibration if part.name == "unet" else []
            raw = folder / ".raw" / part.name
            _export(part, raw, settings, static, unit, torch.float32)
            half = precision == "fp16" and settings.format != "openvino"  # OpenVINO halves a finished graph itself
            if half:
                _export(part, folder / part.name, settings, static, unit, torch.float16)
            else:
                _convert(raw, folder / part.name, precision, settings.format, rows)
            session = _session(folder / part.name, settings, precision)
            shapes = shapes_to_try(latent_size, unit, static)
            # scales were calibrated at the native size, and hold there
            parities.append(compare(part, session, shapes[:2] if precision == "int8" else shapes, precision))
            if part.name == "unet" and precision != "fp32":
                measured = _measure(raw, session, precision, settings, teacher, calibration, static)
            shutil.rmtree(raw)
        shutil.rmtree(folder / ".raw")
        if settings.format == "openvino":
            tokenizer_to_openvino(teacher.tokenizer, folder / "tokenizer")
        progress("export", len(parts), len(parts), {p.component: p.relative_error for p in parities})
        manifest = _manifest(source, teacher, settings, parities, parts, folder)
        manifest.facts |= measured | ({"static_size": list(native)} if settings.static else {})
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                manifest.add_file(folder, file.relative_to(folder).as_posix())
        manifest.write(folder)
    return manifest


def _precision(name: str, settings: Settings) -> str:
    if name.startswith("vae"):
        return settings.vae_precision
    if settings.precision == "mixed" and name == "text_encoder":
        return "fp32"
    return settings.precision


def _export(part: Component, folder: Path, settings: Settings, static: Any, unit: int, dtype: torch.dtype) -> None:
    export_onnx(
        part,
        folder / "model.onnx",
        opset=settings.resolved_opset,
        dtype=dtype,
        static=static,
        trace_at=(max(16, 2 * unit),) * 2,
        external_data=settings.external_data,
    )


def _convert(raw: Path, folder: Path, precision: str, target: str, calibration: Sequence[dict[str, Array]]) -> None:
    """raw/model.onnx, which is fp32, to what the package holds in `folder`; raw stays, for comparing."""
    if target == "openvino":
        to_openvino(raw / "model.onnx", folder, precision, calibration)
        return
    for file in raw.glob("model.onnx*"):
        shutil.copyfile(file, folder / file.name)
    if precision in ("int8", "mixed"):
        quantise_onnx(folder / "model.onnx", precision, target, calibration)


def _session(folder: Path, settings: Settings, precision: str) -> Session:
    """On this machine's processor; what goes to TensorRT is read by ONNX Runtime here."""
    return open_session(folder, "onnx" if settings.format == "trt" else settings.format, "cpu", None, precision)


def _measure(
    raw: Path,
    session: Session,
    precision: str,
    settings: Settings,
    teacher: Teacher,
    rows: Sequence[dict[str, Array]],
    static: Any,
) -> dict[str, Any]:
    """What a smaller precision costs and brings: the UNet's error over timesteps, and its time against fp32's."""
    plain = raw / "fp32"
    plain.mkdir()
    _convert(raw, plain, "fp32", settings.format, [])
    baseline = _session(plain, settings, "fp32")
    errors = quality(session, teacher, rows) if static is None else []
    seconds = seconds_per_step({"fp32": baseline, precision: session}, rows[len(rows) // 2])
    return {"unet_error_by_timestep": errors, "seconds_per_step": seconds, "verdict": verdict(seconds, precision)}


def copy_shared(source: Source, teacher: Teacher, folder: Path) -> None:
    """What diffusers' folder and the package have in common: index, configurations, tokenizer, schedule."""
    index = read_json(source.folder / "model_index.json")
    kept = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
    index = {k: v if k.startswith("_") or k in kept else [None, None] for k, v in index.items()}
    write_json(folder / "model_index.json", {**index, "requires_safety_checker": False})
    shutil.copytree(source.folder / "scheduler", folder / "scheduler")
    teacher.tokenizer.save_pretrained(folder / "tokenizer")
    for name in ("vocab.json", "merges.txt"):  # transformers 4 reads these, and 5 does not write them
        if (source.folder / "tokenizer" / name).is_file():
            shutil.copyfile(source.folder / "tokenizer" / name, folder / "tokenizer" / name)
    for name, of in (("text_encoder",) * 2, ("unet",) * 2, ("vae_decoder", "vae"), ("vae_encoder", "vae")):
        (folder / name).mkdir()
        shutil.copyfile(source.folder / of / "config.json", folder / name / "config.json")


def _manifest(
    source: Source,
    teacher: Teacher,
    settings: Settings,
    parities: list[Parity],
    parts: list[Component],
    folder: Path,
) -> Manifest:
    run = source.run
    facts: dict[str, Any] = {
        "format": "onnx" if settings.format == "trt" else settings.format,  # engines are built from it
        "target": settings.format,
        "precision": {p.name: _precision(p.name, settings) for p in parts},
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
def latent_to_rgb(teacher: Teacher, pictures: int = 16) -> list[list[float]]:
    """[channels + 1, 3]: the linear map (last row: constant) from scaled latents to small pictures in [0, 1].

    Least squares over what the decoder makes of smooth random latents: for previews, which it serves well enough.
    """
    noise = starting_noise(0, range(pictures), teacher.latent_shape())
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False) * 2
    small: Tensor = torch.nn.functional.avg_pool2d(teacher.decode(smooth), teacher.pixels_per_latent)
    x = smooth.movedim(1, -1).reshape(-1, smooth.shape[1]).numpy()
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    fitted = np.linalg.lstsq(x, small.movedim(1, -1).reshape(-1, 3).numpy(), rcond=None)[0]
    return [[round(float(v), 5) for v in row] for row in fitted]


def zip_package(folder: Path, archive: Path) -> None:
    """The package as one file, not compressed again (weights do not shrink): the runtime reads it as it is."""
    with replacing(archive) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(folder).as_posix())
