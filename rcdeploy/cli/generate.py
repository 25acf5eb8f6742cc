"""rcdeploy generate"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import typer

from .console import err, out, stages
from .options import QUIET


def generate_command(
    package: str = typer.Argument(help="A package (folder or .zip) that rcdeploy export wrote."),
    prompt: str = typer.Argument(help="What to draw."),
    file: Path = typer.Option(
        Path("out.png"), "--out", "-o", help="The picture; with --batch out-0.png, out-1.png, ..."
    ),
    negative_prompt: str = typer.Option("", help="What not to draw."),
    seed: int | None = typer.Option(None, help="The same seed draws the same picture; random when not given."),
    steps: int = typer.Option(25, help="Denoising steps."),
    guidance_scale: float = typer.Option(7.5, help="How strictly to follow the prompt; 1 halves the work."),
    height: int | None = typer.Option(None, help="In pixels; the model's own by default."),
    width: int | None = typer.Option(None, help="In pixels; the model's own by default."),
    batch: int = typer.Option(1, help="Pictures, with seeds that count up from --seed."),
    sampler: str = typer.Option("ddim", help="ddim, pndm, euler, euler_ancestral, dpm++, lcm."),
    image: Path | None = typer.Option(None, help="Begin from this picture."),
    strength: float = typer.Option(0.8, help="How much of --image to change, 0 to 1."),
    mask: Path | None = typer.Option(None, help="White where --image may be redrawn."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, ..."),
    threads: int | None = typer.Option(None, help="Of the processor; all of them by default."),
    as_json: bool = typer.Option(False, "--json", help="Print the record: seeds, steps, seconds per stage."),
    quiet: bool = QUIET,
) -> None:
    """Draw pictures from a package, without torch: what applications do with rcdeploy_runtime."""
    from rcdeploy_runtime.image_files import check_image_path, load_image, save_images
    from rcdeploy_runtime.text_to_image import TextToImage

    check_image_path(file)
    begin_from = None if image is None else load_image(image)
    anew = None if mask is None else load_image(mask)
    model = TextToImage.load(package, device=device, threads=threads)
    with stages(quiet or as_json) as progress, warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        images, record = model.generate(
            prompt,
            callback=lambda step: progress("denoising", step.completed, step.total, {}),
            negative_prompt=negative_prompt,
            seed=seed,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            batch=batch,
            sampler=sampler,
            image=begin_from,
            strength=strength,
            mask=anew,
        )
    for remark in remarks:
        err.print(str(remark.message), style="yellow", soft_wrap=True)
    files = [str(f) for f in save_images(images, file)]
    if as_json:
        out.print_json(json.dumps({"files": files, **record}))
    else:
        seeds, seconds = record["seeds"], record["seconds"]["all"]
        for name, picked in zip(files, seeds, strict=True):
            out.print(f"{name}  (seed {picked}, {seconds / len(files):.2f} s)", soft_wrap=True)
