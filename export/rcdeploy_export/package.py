"""The package: every component exported and compared with torch, then sealed with a manifest, or not written at all."""

from __future__ import annotations

import shutil
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rcdeploy.bench.costs import branches
from rcdeploy.decoder.folder import open_decoder
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_config import native_latent_size, size_multiple
from rcdeploy.progress import Progress
from rcdeploy_runtime.files import new_folder, replacing
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.sampling_defaults import SamplingDefaults
from rcdeploy_runtime.session_options import SessionOptions
from rcdeploy_runtime.sessions import Session, open_session

from .calibration import calibration_inputs, representative_prompts
from .components import Component, components
from .coreml_package import export_mlpackage, with_coreml_names
from .executorch_pte import export_pte
from .export_options import FOR_PHONES, ExportOptions, check_target
from .onnx_graph import export_onnx
from .onnx_int8 import quantise_onnx
from .openvino_ir import to_openvino, tokenizer_to_openvino
from .package_files import copy_configs, copy_judge, package_manifest, tokenizers
from .parity import Parity, Shape, compare, shapes_to_compare
from .quality import MAX_IMAGES, affordable, compare_images, error_by_timestep, seconds_per_step, verdict
from .source import ExportSource


def export_package(source: ExportSource, out: Path, options: ExportOptions, progress: Progress) -> Manifest:
    """Writes the package `out`.

    Raises RcdeployError, and leaves what was at `out`, when a network differs from torch or cannot be exported.
    """
    check_target(out)
    options.check_installed()
    if options.image_size is not None:
        source.check_size("--size", options.image_size)
    model = source.load_model()
    parts = [name for name in model.components if name != "scheduler"]
    for completed, name in enumerate(parts):
        progress("loading", completed, len(parts))
        model.load(name)
    progress("loading", len(parts), len(parts))
    decoder = open_decoder(options.decoder, model) if options.decoder else None
    if decoder:
        model.use_decoder(decoder.network)
    networks = components(model, options.encoder)
    if options.format == "coreml":
        networks = [with_coreml_names(component) for component in networks]
    sampling = options.sampling or source.sampling or SamplingDefaults()
    latent_size = _latent_size(model, options)
    with new_folder(out) as folder:
        copy_configs(source, model, networks, decoder, folder)
        if options.judge:
            copy_judge(source, folder)
        reduced = options.precision != "fp32" and options.runs_here
        calibrated = options.precision == "int8" and options.format != "onnx"  # ONNX Runtime scales as it runs
        samples = (
            calibration_inputs(source, model, options.prompts, sampling, latent_size, calibrated, progress)
            if reduced
            else []
        )
        exporter = _ComponentExporter(model, options, folder, latent_size, samples, sampling)
        parities = []
        for component in networks:
            parity = exporter.export(component, progress)
            parities += [parity] if parity else []
            if not component.name.startswith("vae"):  # its two halves are one model, and the previews' map decodes
                model.release(component.name)
        shutil.rmtree(folder / ".raw", ignore_errors=True)
        if options.format == "openvino":
            for name, tokenizer in tokenizers(model).items():
                tokenizer_to_openvino(tokenizer, folder / name)
        progress("manifest", 0, 2)
        manifest = package_manifest(source, model, options, parities, networks, decoder, folder)
        manifest.facts |= exporter.measured
        if options.fixed_shapes:
            manifest.facts["static_size"] = [x * model.pixels_per_latent for x in latent_size]
        progress("manifest", 1, 2)
        manifest.add_files(folder)
        manifest.write(folder)
        progress("manifest", 2, 2)
        if reduced:
            manifest.facts["pictures"] = _compare_images(source, exporter, progress)
            manifest.write(folder)
    return manifest


def _latent_size(model: LatentDiffusionModel, options: ExportOptions) -> tuple[int, int]:
    """(height, width) of the latents that a static export is fixed to, and that every export is compared at."""
    pixels = model.pixels_per_latent
    if options.image_size is None:
        return native_latent_size(model.unet_config)
    height, width = options.image_size
    return height // pixels, width // pixels


@dataclass
class _ComponentExporter:
    """Exports the components of one package.

    Args:
        model: the one that is exported.
        options: of the export.
        folder: of the package.
        latent_size: (height, width).
        samples: UNet inputs to calibrate and measure with; empty for fp32.
        sampling: how the model wants to be sampled.
        measured: facts about a smaller precision, filled by the UNet's export.
        seconds_left: for measuring, of the options' measure_seconds.
    """

    model: LatentDiffusionModel
    options: ExportOptions
    folder: Path
    latent_size: tuple[int, int]
    samples: list[dict[str, Array]]
    sampling: SamplingDefaults
    measured: dict[str, Any] = field(default_factory=dict)
    seconds_left: float = field(init=False)

    def __post_init__(self) -> None:
        self.seconds_left = self.options.measure_seconds

    @property
    def unet_rows(self) -> int:
        """Rows of a UNet call for one image."""
        return branches(self.sampling.guidance_scale, bool(self.model.unet_config.get("time_cond_proj_dim")))

    def export(self, component: Component, progress: Progress) -> Parity | None:
        """Writes a component and compares it with torch; None where this machine cannot execute the format."""
        options = self.options
        precision = options.precision_of(component.name)
        rows = self.unet_rows if component.name == "unet" else 1
        static = (rows, *self.latent_size) if options.fixed_shapes else None
        multiple = size_multiple(self.model.unet_config)
        shapes = shapes_to_compare(component.name, self.latent_size, multiple, static) if options.runs_here else []
        if precision == "int8":  # scales were calibrated at this size, and hold there
            shapes = [s for s in shapes if s[1:] == self.latent_size]
        steps = 2 + len(shapes)
        progress(component.name, 0, steps)
        raw = self.folder / ".raw" / component.name
        target = self.folder / component.name
        if static and options.format in FOR_PHONES:
            self._write_for_phones(component, raw, target, static, progress)
        else:
            is_copied = options.format != "openvino"  # OpenVINO maps the weights, if they are in a file of their own
            self._trace(component, raw, static, torch.float32, options.external_data or not is_copied)
            progress(component.name, 1, steps)
            if precision == "fp16" and is_copied:  # OpenVINO halves a finished graph itself
                self._trace(component, target, static, torch.float16, options.external_data)
            else:
                self._convert(raw, target, precision, progress)
        progress(component.name, 2, steps)
        if not options.runs_here:
            return None
        session = self._open_session(target, precision)
        parity = compare(
            component, session, shapes, precision, lambda compared: progress(component.name, 2 + compared, steps)
        )
        progress(component.name, steps, steps, {"relative error": parity.relative_error})
        if component.name == "unet" and precision != "fp32" and self.seconds_left > 0:
            started = time.perf_counter()
            self._measure(raw, session, precision, progress)
            self.seconds_left -= time.perf_counter() - started
        shutil.rmtree(raw, ignore_errors=True)
        return parity

    def _write_for_phones(
        self, component: Component, raw: Path, folder: Path, shape: Shape, progress: Progress
    ) -> None:
        """Writes a program for one shape; of a UNet in int8 one in fp32 as well, in raw/, where it is timed."""
        precision = self.options.precision_of(component.name)
        if self.options.format == "coreml":
            export_mlpackage(component, folder, shape=shape, half=precision == "fp16")
            return
        quantised = precision == "int8"
        samples = self.samples if component.name == "unet" and quantised else []

        def on_sample(used: int) -> None:
            progress(f"{component.name} calibration", used, len(samples))

        export_pte(component, folder, shape=shape, quantised=quantised, calibration=samples, on_sample=on_sample)
        if samples and self.seconds_left > 0:
            export_pte(component, raw, shape=shape, quantised=False, calibration=[], on_sample=on_sample)

    def _trace(
        self, component: Component, folder: Path, static: Shape | None, dtype: torch.dtype, external_data: bool
    ) -> None:
        smallest = 2 * size_multiple(self.model.unet_config)
        opset = self.options.resolved_opset
        assert opset is not None  # only formats for phones have none
        export_onnx(
            component,
            folder / "model.onnx",
            opset=opset,
            dtype=dtype,
            static=static,
            trace_at=(max(16, smallest),) * 2,
            external_data=external_data,
        )

    def _convert(self, raw: Path, folder: Path, precision: str, progress: Progress) -> None:
        """Converts raw/model.onnx, which is fp32, to what the package holds in `folder`; raw stays as it is."""
        samples = self.samples if raw.name == "unet" and precision == "int8" else []

        def on_sample(used: int) -> None:
            progress(f"{raw.name} calibration", used, len(samples))

        if self.options.format == "openvino":
            to_openvino(raw / "model.onnx", folder, precision, samples, on_sample)
            return
        for file in raw.glob("model.onnx*"):
            shutil.copyfile(file, folder / file.name)
        if precision.startswith("int8"):
            quantise_onnx(folder / "model.onnx", precision, self.options.format, samples, on_sample)

    def _open_session(self, folder: Path, precision: str) -> Session:
        """On this machine's processor; a graph for TensorRT is read by ONNX Runtime here."""
        kind = "onnx" if self.options.format == "trt" else self.options.format
        return open_session(folder, kind, SessionOptions(device="cpu"), precision)

    def _measure(self, raw: Path, session: Session, precision: str, progress: Progress) -> None:
        """Measures what a smaller precision changes: the UNet's error over timesteps, its seconds against fp32.

        A third of the seconds for each, and what is left for images. The speed last, without torch's UNet: two sessions
        are the most memory that an export takes.
        """
        third = self.seconds_left / 3
        if not self.options.fixed_shapes:  # a static UNet takes its own batch and size
            self.measured["unet_error_by_timestep"] = error_by_timestep(
                session,
                self.model,
                self.samples,
                third,
                lambda done, total: progress("unet error", done, total),
            )
        self.model.release("unet")
        baseline = raw / "fp32"
        baseline.mkdir()
        if self.options.format == "openvino":
            to_openvino(raw / "model.onnx", baseline, "fp32", [], lambda _used: None)
        else:
            baseline = raw
        seconds = seconds_per_step(
            {"fp32": self._open_session(baseline, "fp32"), precision: session},
            self.samples[len(self.samples) // 2],
            self.unet_rows,
            third,
            lambda done, total: progress("unet speed", done, total),
        )
        self.measured |= {"seconds_per_step": seconds, "verdict": verdict(seconds, precision)}


def _compare_images(source: ExportSource, exporter: _ComponentExporter, progress: Progress) -> dict[str, Any]:
    """Compares the finished package's images with torch's: as many as the options say, or as time is left for."""
    options = exporter.options
    count = options.image_count
    if count is None:
        seconds = exporter.measured.get("seconds_per_step")  # torch is about as slow as fp32
        image = exporter.sampling.num_inference_steps * sum(seconds.values()) if seconds else float("inf")
        count = affordable(exporter.seconds_left, image, MAX_IMAGES)
    if count == 0:
        return {"count": 0}
    return compare_images(
        exporter.folder,
        exporter.model,
        representative_prompts(source, options.prompts, count),
        options.precision,
        judge=source.judge,
        clip=options.clip,
        sampling=exporter.sampling,
        progress=lambda done, total: progress("images", done, total),
    )


def zip_package(folder: Path, archive: Path) -> None:
    """Writes the package as one file, uncompressed (weights do not shrink); the runtime reads it as it is."""
    with replacing(archive) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(folder).as_posix())
