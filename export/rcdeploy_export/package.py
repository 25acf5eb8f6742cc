"""The package: every component exported and compared with torch, then sealed with a manifest, or not written at all."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder, replacing
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.sessions import Session, open_session

from .components import Component, components, halvings
from .contents import copy_shared, package_manifest
from .onnx_graph import export_onnx
from .openvino_ir import require, to_openvino, tokenizer_to_openvino
from .parity import Parity, compare, shapes_to_try
from .precision import calibration_inputs, quantise_onnx, representative_prompts
from .quality import affordable, compare_pictures, error_by_timestep, seconds_per_step, verdict
from .settings import Settings
from .source import Source

Progress = Callable[[str, int, int, dict[str, float]], None]


def export_package(source: Source, out: Path, settings: Settings, progress: Progress) -> Manifest:
    """Writes the package `out`. Raises RcdeployError, and leaves what was at `out`, when anything does not agree."""
    if out.exists() and not (out / NAME).is_file():
        raise RcdeployError(f"{out} is there and is no package", fix="Give --out another folder.")
    if settings.format == "openvino":
        require(settings.precision)  # what is not installed is said before minutes are spent
    teacher = source.teacher()
    teacher.load("text_encoder", "unet", "vae", "tokenizer")
    parts = components(teacher)
    native = _native_size(teacher, settings)
    with new_folder(out) as folder:
        copy_shared(source, teacher, folder)
        rows = calibration_inputs(source, teacher, settings.prompts) if settings.precision != "fp32" else []
        work = _Work(teacher, settings, folder, native, rows)
        parities = [work.export(part, progress) for part in parts]
        shutil.rmtree(folder / ".raw")
        if settings.format == "openvino":
            tokenizer_to_openvino(teacher.tokenizer, folder / "tokenizer")
        manifest = package_manifest(source, teacher, settings, parities, parts, folder)
        manifest.facts |= work.measured
        if settings.static:
            manifest.facts["static_size"] = [x * teacher.pixels_per_latent for x in native]
        manifest.add_files(folder)
        manifest.write(folder)
        if settings.precision != "fp32":
            manifest.facts["pictures"] = _pictures(source, work, progress)
            manifest.write(folder)
    return manifest


def _native_size(teacher: LatentDiffusionModel, settings: Settings) -> tuple[int, int]:
    """In latent pixels: what is exported for, or compared at first."""
    unit, pixels = 2 ** halvings(teacher.unet_config), teacher.pixels_per_latent
    height, width = settings.size or (int(teacher.unet_config["sample_size"]) * pixels,) * 2
    if height % (unit * pixels) or width % (unit * pixels):
        raise RcdeployError(f"the size {height} x {width} is no multiple of {unit * pixels} pixels")
    return height // pixels, width // pixels


@dataclass
class _Work:
    """One package in the making. native: latent height and width. rows: UNet inputs, when a precision needs them."""

    teacher: LatentDiffusionModel
    settings: Settings
    folder: Path
    native: tuple[int, int]
    rows: list[dict[str, Array]]
    measured: dict[str, Any] = field(default_factory=dict)

    def export(self, part: Component, progress: Progress) -> Parity:
        """Traced, converted, compared. An fp32 graph lies in .raw/ meanwhile, for what is compared with it."""
        settings, folder, precision = self.settings, self.folder / part.name, self.settings.precision_of(part.name)
        progress(part.name, 0, 3, {})
        unit = 2 ** halvings(self.teacher.unet_config)
        static = (2 if part.name == "unet" else 1, *self.native) if settings.static else None
        raw = self.folder / ".raw" / part.name
        self._trace(part, raw, static, unit, torch.float32)
        progress(part.name, 1, 3, {})
        if precision == "fp16" and settings.format != "openvino":  # OpenVINO halves a finished graph itself
            self._trace(part, folder, static, unit, torch.float16)
        else:
            self._convert(raw, folder, precision, self.rows if part.name == "unet" else [])
        progress(part.name, 2, 3, {})
        session = self._session(folder, precision)
        shapes = shapes_to_try(part.name, self.native, unit, static)
        if precision == "int8":  # scales were calibrated at the native size, and hold there
            shapes = [s for s in shapes if s[1:] == self.native]
        parity = compare(part, session, shapes, precision)
        if part.name == "unet" and precision != "fp32":
            self._measure(raw, session, precision)
        shutil.rmtree(raw)
        progress(part.name, 3, 3, {"relative error": parity.relative_error})
        return parity

    def _trace(self, part: Component, folder: Path, static: Any, unit: int, dtype: torch.dtype) -> None:
        export_onnx(
            part,
            folder / "model.onnx",
            opset=self.settings.resolved_opset,
            dtype=dtype,
            static=static,
            trace_at=(max(16, 2 * unit),) * 2,
            external_data=self.settings.external_data,
        )

    def _convert(self, raw: Path, folder: Path, precision: str, calibration: Sequence[dict[str, Array]]) -> None:
        """raw/model.onnx, which is fp32, to what the package holds in `folder`; raw stays, for comparing."""
        if self.settings.format == "openvino":
            to_openvino(raw / "model.onnx", folder, precision, calibration)
            return
        for file in raw.glob("model.onnx*"):
            shutil.copyfile(file, folder / file.name)
        if precision in ("int8", "mixed"):
            quantise_onnx(folder / "model.onnx", precision, self.settings.format, calibration)

    def _session(self, folder: Path, precision: str) -> Session:
        """On this machine's processor; what goes to TensorRT is read by ONNX Runtime here."""
        kind = "onnx" if self.settings.format == "trt" else self.settings.format
        return open_session(folder, kind, "cpu", None, precision)

    def _measure(self, raw: Path, session: Session, precision: str) -> None:
        """What a smaller precision costs and brings: the UNet's error over timesteps, and its time against fp32's."""
        plain = raw / "fp32"
        plain.mkdir()
        self._convert(raw, plain, "fp32", [])
        seconds = seconds_per_step(
            {"fp32": self._session(plain, "fp32"), precision: session}, self.rows[len(self.rows) // 2]
        )
        self.measured = {"seconds_per_step": seconds, "verdict": verdict(seconds, precision)}
        if not self.settings.static:  # else it takes two rows of another size
            self.measured["unet_error_by_timestep"] = error_by_timestep(session, self.teacher, self.rows)


def _pictures(source: Source, work: _Work, progress: Progress) -> dict[str, Any]:
    """The finished package's pictures beside torch's; how many stands in the settings, or is what time allows."""
    settings = work.settings
    count = affordable(work.measured["seconds_per_step"]) if settings.pictures is None else settings.pictures
    if count == 0:
        return {"count": 0}
    return compare_pictures(
        work.folder,
        work.teacher,
        representative_prompts(source, settings.prompts, count),
        settings.precision,
        judge=source.judge,
        clip=settings.clip,
        progress=lambda done, of: progress("pictures", done, of, {}),
    )


def zip_package(folder: Path, archive: Path) -> None:
    """The package as one file, not compressed again (weights do not shrink): the runtime reads it as it is."""
    with replacing(archive) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(folder).as_posix())
