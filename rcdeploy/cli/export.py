"""rcdeploy export"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

from .console import err, out, parse_size, quieten_libraries, show_table, stages
from .interrupts import persistent_interrupts
from .options import JSON, QUIET

if TYPE_CHECKING:
    from rcdeploy_export.export_options import ExportOptions
    from rcdeploy_export.source import ExportSource
    from rcdeploy_runtime.engine_options import EngineOptions


def export_command(
    source: Path | None = typer.Argument(None, help="A run, or any diffusers text-to-image folder; the newest run."),
    folder: Path | None = typer.Option(None, "--out", "-o", help="The package; by default packages/NAME-FORMAT."),
    format: str = typer.Option(
        "onnx", "--format", "-f", help="onnx, openvino, trt, executorch, coreml, or single-file."
    ),
    precision: str = typer.Option(
        "fp32",
        help="Of UNet and text encoder: fp32; fp16 (not executorch); bf16 (openvino); int8 (not coreml); "
        "int8-matmul (onnx: matrix products alone); int8-weights (openvino: weights alone).",
    ),
    vae_precision: str | None = typer.Option(
        None,
        help="Of the VAE: fp32; fp16 (black images with some models); bf16 (openvino); by default bf16 beside "
        "openvino's bf16 or int8, else fp32.",
    ),
    opset: int | None = typer.Option(None, help="ONNX opset; by default 23, and 20 for openvino, trt and int8."),
    static: bool = typer.Option(False, "--static", help="Fixed shapes, for accelerators that need them."),
    size: str | None = typer.Option(None, metavar="HxW", help="The fixed size in pixels; the model's own by default."),
    external_data: bool = typer.Option(False, help="Weights in files of their own, also below 2 GB."),
    compute_capability: str = typer.Option("", help="For trt: 8.6,8.9 builds engines here with TensorRT-RTX, no GPU."),
    workspace_gb: float = typer.Option(4.0, help="For trt: most memory that a layer of an engine may use."),
    max_batch: int = typer.Option(1, help="For trt: images at once."),
    profile: str = typer.Option(
        "",
        metavar="MIN,USUAL,MAX",
        help="For trt: image sizes, such as 256x256,512x512,768x768; by default half the recipe's size to twice it.",
    ),
    hardware_compatible: bool = typer.Option(
        False, "--hardware-compatible", help="For trt: engines for every GPU from Ampere on, somewhat slower."
    ),
    check: str | None = typer.Option(None, help="trt: let TensorRT-RTX's parser read every exported graph."),
    steps: int | None = typer.Option(
        None, min=1, help="Denoising steps that the package records; by default the run's."
    ),
    guidance_scale: float | None = typer.Option(None, help="That the package records; by default the run's."),
    decoder: Path | None = typer.Option(
        None, help="A tiny decoder's folder, such as runs/NAME/decoder, in the place of the VAE's."
    ),
    encoder: bool = typer.Option(True, help="With the VAE's encoder, which img2img needs."),
    judge: bool = typer.Option(
        False, "--judge", help="With the judge beside the teacher: the package can then be evaluated anywhere."
    ),
    sampler: str | None = typer.Option(
        None, help="That the package records: ddim, lcm, tcd ...; by default the run's."
    ),
    prompts: Path | None = typer.Option(
        None, help="Captions to calibrate and to compare images with; by default those of the run."
    ),
    image_count: int | None = typer.Option(
        None,
        "--pictures",
        help="Images that compare a smaller precision with torch; by default as many as --measure-seconds allow.",
    ),
    measure_seconds: float = typer.Option(
        60.0,
        min=0,
        help="For measuring a smaller precision: speed, error, images; 0 measures nothing but --pictures.",
    ),
    clip: Path | None = typer.Option(None, help="A CLIP model's folder, to score those images."),
    as_zip: bool = typer.Option(False, "--zip", help="Also one .zip beside the folder; the runtime reads it as it is."),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Turn a student (or any Stable Diffusion folder) into a package that generates images without torch.

    Formats: onnx (the runtime, Optimum), openvino (the runtime, openvino-genai), trt (ONNX for TensorRT, and engines
    where they can be built), executorch and coreml (programs of one size for phones, in an environment of their own:
    docs/guide/phones.md), single-file (safetensors in the original layout). stable-diffusion.cpp opens no student's
    single file today, and b-tiny as the run's pipeline/ folder; ComfyUI single files of the b- family; diffusers all
    when told the config: docs/compatibility.md.

    Every network is compared with torch at several shapes before the package is written; if one differs, nothing is
    written. A precision below fp32 is measured on the spot: errors over the timesteps, images, seconds. Generate from
    the package with `rcdeploy generate`, or on a device with `python -m rcdeploy_runtime generate`.
    """
    from rcdeploy_export.export_options import ExportOptions, check_target, current_precision
    from rcdeploy_export.source import ExportSource
    from rcdeploy_runtime.engine_options import EngineOptions, parse_capabilities, parse_profile
    from rcdeploy_runtime.sampling_defaults import SamplingDefaults

    quiet = quiet or as_json
    if format == "single-file":
        _single_file(ExportSource.open(source), folder, as_json)
        return
    precision = current_precision(format, precision, lambda text: None if quiet else err.print(text, style="dim"))
    image_size = parse_size(size) if size else None
    options = ExportOptions(
        format=format,
        precision=precision,
        vae_precision=vae_precision,
        opset=opset,
        static=static,
        image_size=image_size,
        external_data=external_data,
        prompts=prompts,
        measure_seconds=measure_seconds,
        image_count=image_count,
        clip=clip,
        decoder=decoder,
        encoder=encoder,
        judge=judge,
    )
    engines = EngineOptions(
        workspace_gb, max_batch, parse_profile(profile), parse_capabilities(compute_capability), hardware_compatible
    )
    _check_trt_options(options, engines, check)
    model = ExportSource.open(source)
    if (steps, guidance_scale, sampler) != (None, None, None):
        sampling = (model.sampling or SamplingDefaults()).override(sampler, steps, guidance_scale)
        model.check_sampling(sampling)
        options = replace(options, sampling=sampling)
    for option, image_sizes in (("--size", [image_size]), ("--profile", engines.sizes or [])):
        for requested in image_sizes:
            if requested is not None:
                model.check_size(option, requested)
    target = folder or Path("packages") / f"{model.name}-{format}{'' if precision == 'fp32' else '-' + precision}"
    check_target(target)
    options.check_installed()
    manifest = _export(model, target, options, quiet)
    result: dict[str, Any] = {"package": str(target), "zip": None, "engines": None}
    try:
        if check is not None:
            _check_graphs(target, quiet)
        if as_zip:
            result["zip"] = _zip(target)
        if format == "trt":
            result["engines"] = _build_engines(target, engines, quiet)
    except KeyboardInterrupt:
        err.print(f"Stopped. The package {target} is complete.", soft_wrap=True)
        raise typer.Exit(130) from None
    rows = _component_rows(manifest)
    if as_json:
        out.print_json(json.dumps({**result, "components": rows, "facts": manifest.facts}))
    elif not quiet:
        compared = "compared with torch" if options.runs_here else "converted"
        show_table(f"{target}: {compared}", list(rows[0]), rows, as_json=False)
        if "pictures" in manifest.facts:
            _print_quality(manifest.facts, precision)
        for name in ("zip", "engines"):
            if result[name]:
                out.print(f"{name}: {result[name]}", soft_wrap=True)
        if options.runs_here:
            out.print(f'Generate from it:  rcdeploy generate {target} "a prompt"', soft_wrap=True)
        else:
            out.print("Not run here: Core ML needs one of Apple's systems (examples/embed/ios.md).", soft_wrap=True)


def _export(source: ExportSource, target: Path, options: ExportOptions, quiet: bool) -> Manifest:
    """Writes the package. On Ctrl-C nothing is written, and the exit code is 130."""
    try:
        with stages(quiet) as bars, persistent_interrupts(bars) as progress:
            from rcdeploy_export.package import export_package

            quieten_libraries()
            return export_package(source, target, options, progress)
    except KeyboardInterrupt:
        before = "the package that was there is unchanged" if target.exists() else "no package was written"
        err.print(f"Stopped: {before}. Run the same command to start over.", soft_wrap=True)
        raise typer.Exit(130) from None


def _zip(package: Path) -> str:
    from rcdeploy_export.package import zip_package

    archive = package.with_name(package.name + ".zip")
    zip_package(package, archive)
    return str(archive)


def _component_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Precision, megabytes and difference from torch of each network."""
    parity = {p["component"]: p for p in manifest.facts["parity"]}
    return [
        {"component": name, "precision": precision, "MB": manifest.size_of(name) / 1e6, **_errors(parity.get(name))}
        for name, precision in manifest.facts["precision"].items()
    ]


def _errors(parity: dict[str, Any] | None) -> dict[str, str]:
    if parity is None:
        return {"max_abs_error": "not run", "relative_error": "not run"}
    return {name: f"{parity[name]:.1e}" for name in ("max_abs_error", "relative_error")}


def _print_quality(facts: dict[str, Any], precision: str) -> None:
    if "verdict" in facts:
        err.print(f"UNet in {precision}: {facts['verdict']}.")
    errors = [e["relative_error"] for e in facts.get("unet_error_by_timestep", [])]
    if errors:
        err.print(f"Its relative error over the timesteps is at most {max(errors):.3f}.")
    comparison = facts["pictures"]
    if not comparison["count"]:
        if "verdict" not in facts:
            return  # nothing was to be measured
        err.print("No images were compared: they take too long here. --measure-seconds, or --pictures 4, allows them.")
        return
    err.print(f"{comparison['count']} images differ from torch's by {comparison['grey_levels']:.1f} of 255 on average.")
    for name, title in (("judge", "Recognised by the judge"), ("clip_score", "CLIP score")):
        if name in comparison:
            err.print(f"{title}: " + "; ".join(f"{k} {_score(v)}" for k, v in comparison[name].items()))


def _score(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in value.items())
    return f"{value:.4f}"


def _single_file(source: ExportSource, target: Path | None, as_json: bool) -> None:
    file = target or Path("packages") / f"{source.name}.safetensors"
    if file.is_dir():
        raise RcdeployError(f"{file} is a folder; --format single-file writes a file", fix="Give --out a file name.")
    from rcdeploy_export.single_file import write_single_file

    quieten_libraries()
    write_single_file(source.load_model(), file)
    out.print_json(json.dumps({"file": str(file)})) if as_json else out.print(str(file), soft_wrap=True)


def _check_trt_options(options: ExportOptions, engines: EngineOptions, check: str | None) -> None:
    from rcdeploy_runtime.engine_options import EngineOptions
    from rcdeploy_runtime.trt_engines import load_builder

    if check not in (None, "trt"):
        raise RcdeployError(f"--check {check!r}: the only one is trt")
    if check and options.format not in ("onnx", "trt"):
        raise RcdeployError(
            f"--check trt reads ONNX graphs, and a package of --format {options.format} has none",
            fix="Use --format trt.",
        )
    if options.format != "trt" and engines != EngineOptions():
        raise RcdeployError(
            "--compute-capability, --workspace-gb, --max-batch, --profile, --hardware-compatible: only for --format trt"
        )
    if options.static and engines.sizes:
        raise RcdeployError("--profile and --static contradict each other: static engines have one size")
    if check:
        load_builder(rtx=True)  # fails now rather than after minutes


def _check_graphs(package: Path, quiet: bool) -> None:
    from rcdeploy_runtime.trt_engines import check_graphs

    for name, verdict in check_graphs(package).items():
        if not quiet:
            err.print(f"TensorRT-RTX reads {name}: {verdict}", style="dim")


def _build_engines(package: Path, options: EngineOptions, quiet: bool) -> str | None:
    """Builds engines where they were asked for, or where this machine has TensorRT; returns their folder.

    Raises RcdeployError when they cannot be built. The ONNX package stays either way.
    """
    from rcdeploy_runtime.trt_engines import build_engines, load_builder

    command = f"python -m rcdeploy_runtime build-engine {package.name}"
    if not options.compute_capabilities:
        try:
            load_builder(rtx=False)
        except RcdeployError:
            if not quiet:
                err.print("TensorRT is not installed here, so no engines were built.", style="dim")
                err.print(f"Copy the package to the device and run there: {command}", soft_wrap=True)
            return None
    log = (lambda _text: None) if quiet else (lambda text: err.print(text, style="dim"))
    try:
        return str(build_engines(package, None, options, log=log))
    except RcdeployError as error:
        requested = ",".join(options.compute_capabilities)
        option = f" --compute-capability {requested}" if requested else ""
        raise RcdeployError(
            f"No engines were built: {error.message}",
            fix=f"{error.fix or ''}\nThe ONNX package {package} is complete. Build engines from it with: "
            f"{command}{option}".strip(),
        ) from error
