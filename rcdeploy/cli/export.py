"""rcdeploy export"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

from .console import err, out, parse_size, quieten_libraries, show_table, stages
from .options import QUIET


def export_command(
    source: Path | None = typer.Argument(None, help="A run, or any diffusers text-to-image folder; the newest run."),
    folder: Path | None = typer.Option(None, "--out", "-o", help="The package; by default packages/NAME-FORMAT."),
    format: str = typer.Option("onnx", "--format", "-f", help="onnx, openvino, trt, or single-file."),
    precision: str = typer.Option("fp32", help="Of UNet and text encoder: fp32, fp16, bf16, int8, mixed."),
    vae_precision: str = typer.Option("fp32", help="Of the VAE: fp32, or fp16 (some models draw black pictures then)."),
    opset: int | None = typer.Option(None, help="ONNX opset; by default 23, and 20 for openvino, trt, int8, mixed."),
    static: bool = typer.Option(False, "--static", help="Fixed shapes, for accelerators that need them."),
    size: str | None = typer.Option(None, metavar="HxW", help="The fixed size in pixels; the model's own by default."),
    external_data: bool = typer.Option(False, help="Weights in files of their own, also below 2 GB."),
    compute_capability: str = typer.Option("", help="For trt: 8.6,8.9 builds engines here with TensorRT-RTX, no GPU."),
    check: str | None = typer.Option(None, help="trt: let TensorRT-RTX's parser read every exported graph."),
    prompts: Path | None = typer.Option(
        None, help="Captions to calibrate with and to draw for comparing; the run's own by default."
    ),
    pictures: int | None = typer.Option(
        None, help="Drawn with a smaller precision and with torch, to compare; by default what a minute allows."
    ),
    clip: Path | None = typer.Option(None, help="A CLIP model's folder, to score those pictures."),
    as_zip: bool = typer.Option(False, "--zip", help="Also one .zip beside the folder; the runtime reads it as it is."),
    as_json: bool = typer.Option(False, "--json", help="Say what was made as JSON."),
    quiet: bool = QUIET,
) -> None:
    """Turn a student (or any Stable Diffusion folder) into a package that draws without torch.

    Formats: onnx (the runtime, Optimum), openvino (the runtime, openvino-genai), trt (ONNX for TensorRT, and engines
    where they can be built), single-file (safetensors in the original layout, for stable-diffusion.cpp and web UIs).

    Every network is compared with torch at several shapes before the package is written; one that does not agree leaves
    nothing. A precision below fp32 is measured on the spot: errors over the timesteps, pictures, seconds. Draw from the
    package with `rcdeploy generate`, or on a device with `python -m rcdeploy_runtime generate`.
    """
    from rcdeploy_export.package import export_package, zip_package
    from rcdeploy_export.settings import Settings
    from rcdeploy_export.source import Source

    quieten_libraries()
    if format == "single-file":
        _single_file(Source.find(source), folder, as_json)
        return
    fixed = parse_size(size) if size else None
    settings = Settings(format, precision, vae_precision, opset, static, fixed, external_data, prompts, pictures, clip)
    _check_trt_options(format, check, compute_capability)
    found = Source.find(source)
    target = folder or Path("packages") / f"{found.name}-{format}{'' if precision == 'fp32' else '-' + precision}"
    with stages(quiet or as_json) as progress:
        manifest = export_package(found, target, settings, progress)
    if check is not None:
        _check(target, quiet or as_json)
    if format == "trt":
        _build(target, compute_capability, quiet or as_json)
    if as_zip:
        zip_package(target, target.with_name(target.name + ".zip"))
    rows = _components(manifest)
    if as_json:
        out.print_json(json.dumps({"package": str(target), "components": rows, "facts": manifest.facts}))
    elif not quiet:
        show_table(f"{target}: as torch says, at several shapes", list(rows[0]), rows, as_json=False)
        if "verdict" in manifest.facts:
            _say_quality(manifest.facts, precision)
        out.print(f'Draw from it:  rcdeploy generate {target} "a prompt"', soft_wrap=True)


def _components(manifest: Manifest) -> list[dict[str, Any]]:
    """Of each network: its precision, megabytes, and how far it is from torch."""
    return [
        {
            "component": p["component"],
            "precision": manifest.facts["precision"][p["component"]],
            "MB": manifest.size_of(p["component"]) / 1e6,
            "max_abs_error": f"{p['max_abs_error']:.1e}",
            "relative_error": f"{p['relative_error']:.1e}",
        }
        for p in manifest.facts["parity"]
    ]


def _say_quality(facts: dict[str, Any], precision: str) -> None:
    err.print(f"UNet in {precision}: {facts['verdict']}.")
    worst = max((e["relative_error"] for e in facts.get("unet_error_by_timestep", [])), default=None)
    if worst is not None:
        err.print(f"Its relative error over the timesteps is at most {worst:.3f}.")
    pictures = facts["pictures"]
    if not pictures["count"]:
        err.print("No pictures were drawn to compare: they take too long here. --pictures 4 draws them all the same.")
        return
    err.print(f"{pictures['count']} pictures differ from torch's by {pictures['grey_levels']:.1f} of 255 on average.")
    for name, says in (("judge", "The judge reads right"), ("clip_score", "CLIP score")):
        if name in pictures:
            err.print(f"{says}: " + "; ".join(f"{k} {_figures(v)}" for k, v in pictures[name].items()))


def _figures(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in value.items())
    return f"{value:.4f}"


def _single_file(source: Any, target: Path | None, as_json: bool) -> None:
    from rcdeploy_export.single_file import write_single_file

    file = target or Path("packages") / f"{source.name}.safetensors"
    if file.is_dir():
        raise RcdeployError(f"{file} is a folder; --format single-file writes a file", fix="Give --out a file name.")
    write_single_file(source.teacher(), file)
    out.print_json(json.dumps({"file": str(file)})) if as_json else out.print(str(file), soft_wrap=True)


def _check_trt_options(format: str, check: str | None, capabilities: str) -> None:
    if check not in (None, "trt"):
        raise RcdeployError(f"--check {check!r}: trt is the one that can be asked")
    if check and format == "openvino":
        raise RcdeployError("--check trt reads ONNX graphs, and an OpenVINO package has none", fix="Use --format trt.")
    if capabilities and format != "trt":
        raise RcdeployError("--compute-capability is for --format trt")
    if check:
        from rcdeploy_runtime.trt_engines import load_builder

        load_builder(rtx=True)  # what is not installed is said before minutes are spent


def _check(package: Path, quiet: bool) -> None:
    from rcdeploy_runtime.trt_engines import check_graphs

    for name, verdict in check_graphs(package).items():
        if not quiet:
            err.print(f"TensorRT-RTX reads {name}: {verdict}", style="dim")


def _build(package: Path, capabilities: str, quiet: bool) -> None:
    """Engines; where no builder works, the ONNX package stays and one command to run on the device is said."""
    from rcdeploy_runtime.trt_engines import build_engines

    say = (lambda _line: None) if quiet else (lambda line: err.print(line, style="dim"))
    try:
        wanted = [c for c in capabilities.split(",") if c]
        built = build_engines(package, None, compute_capabilities=wanted, log=say)
        err.print(f"Engines: {built}", soft_wrap=True)
    except RcdeployError as error:
        err.print(f"No engine was built here: {error.message}", style="yellow", soft_wrap=True)
        command = f"python -m rcdeploy_runtime build-engine {package.name}"
        err.print(f"The ONNX package is whole. Copy it to the device, and there: {command}", soft_wrap=True)
