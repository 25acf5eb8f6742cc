"""rcdeploy generate"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import typer

from .console import check_input_file, make_log, print_json, print_line, print_warning, resumable, stages
from .options import DEVICE, QUIET

OWN = "the package's own"


def generate_command(
    package: str = typer.Argument(help="A package (folder or .zip) that rcdeploy export wrote.", show_default=False),
    prompt: str = typer.Argument(help="What the image is to show.", show_default=False),
    file: Path = typer.Option(
        Path("out.png"), "--out", "-o", help="The image file; with --batch out-0.png, out-1.png, ..."
    ),
    negative_prompt: str = typer.Option("", help="What the image is not to show."),
    seed: int | None = typer.Option(
        None, help="The same seed generates the same image.", show_default="a random one, which is printed"
    ),
    steps: int | None = typer.Option(None, help="Denoising steps.", show_default=OWN),
    guidance_scale: float | None = typer.Option(
        None, help="How strictly to follow the prompt; 1 or below halves the work.", show_default=OWN
    ),
    height: int | None = typer.Option(None, help="In pixels.", show_default="the model's own"),
    width: int | None = typer.Option(None, help="In pixels.", show_default="the model's own"),
    batch: int = typer.Option(1, help="Number of images, with seeds that count up from --seed."),
    sampler: str | None = typer.Option(
        None,
        help="ddim, pndm, euler, euler_ancestral, heun, dpm++, dpm++_sde, unipc, lcm, tcd.",
        show_default=OWN,
    ),
    eta: float = typer.Option(0.0, help="How much of the noise of ddim and tcd is fresh at each step, 0 to 1."),
    generator: str = typer.Option(
        "philox", help="torch: a seed gives the image that diffusers gives with it; philox: numpy's noise."
    ),
    image: Path | None = typer.Option(None, help="Start from this image (img2img)."),
    strength: float = typer.Option(0.8, help="How much of --image to change, above 0 and up to 1."),
    mask: Path | None = typer.Option(None, help="White where --image may change (inpainting)."),
    decode_tile: int | None = typer.Option(
        None,
        metavar="PIXELS",
        help="Decode in overlapping tiles of so many pixels along a side: less memory, more time, a slightly different "
        "image.",
    ),
    device: str = DEVICE,
    threads: int | None = typer.Option(None, help="Threads of the processor.", show_default="all"),
    backend: str | None = typer.Option(
        None, help="onnxruntime, openvino (executes ONNX packages too) or tensorrt.", show_default=OWN
    ),
    precision: str | None = typer.Option(
        None, help="Precision that OpenVINO computes in: fp32, bf16, fp16.", show_default=OWN
    ),
    tuned: bool = typer.Option(
        True, "--tuned/--no-tuned", help="Use what `rcdeploy tune` kept for this machine, where none of these is given."
    ),
    digest: str | None = typer.Option(
        None, help="sha256:..., which the package must have; `rcdeploy package digest` prints it."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the record as JSON: files, seeds, steps, seconds."),
    quiet: bool = QUIET,
) -> None:
    """Generate images from a package, without torch, as applications do with rcdeploy_runtime."""
    from rcdeploy_runtime.generation import check_settings
    from rcdeploy_runtime.image_files import check_image_path, load_image, save_images
    from rcdeploy_runtime.package import Package
    from rcdeploy_runtime.session_options import SessionOptions
    from rcdeploy_runtime.text_to_image import TextToImage

    check_image_path(file)
    check_input_file(image, "--image")
    check_input_file(mask, "--mask")
    settings: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "batch": batch,
        "sampler": sampler,
        "generator": generator,
        "eta": eta,
        "image": load_image(image) if image else None,
        "strength": strength,
        "mask": load_image(mask) if mask else None,
        "preview": None,
        "decode_tile": decode_tile,
    }
    files = Package(package, digest=digest)
    check_settings(files.image_size, files.sampling, prompt=prompt, **settings)  # before the networks are loaded
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        model = TextToImage(files, SessionOptions(device, threads, None, backend, precision), tuned=tuned)
    for remark in remarks:
        print_warning(str(remark.message))
    if model.tuning:
        make_log(quiet or as_json)(f"tuned: {model.tuning}")
    with (
        resumable("No image was written."),
        stages(quiet or as_json) as progress,
        warnings.catch_warnings(record=True) as remarks,
    ):
        warnings.simplefilter("always")
        images, record = model.generate(
            prompt, callback=lambda step: progress("denoising", step.completed, step.total), **settings
        )
    for remark in remarks:
        print_warning(str(remark.message))
    written = [str(path) for path in save_images(images, file)]
    if as_json:
        print_json({"files": written, **record})
        return
    seconds = record["seconds"]["all"] / len(written)
    for name, image_seed in zip(written, record["seeds"], strict=True):
        print_line(f"{name}  (seed {image_seed}, {seconds:.2f} s)")
