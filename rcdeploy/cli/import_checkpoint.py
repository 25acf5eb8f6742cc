"""rcdeploy import"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from .console import err, out, quieten_libraries
from .options import JSON, QUIET


def import_command(
    checkpoint: Path = typer.Argument(help="A .safetensors file in the layout of the original Stable Diffusion."),
    folder: Path | None = typer.Option(None, "--out", "-o", help="The diffusers folder; by default models/NAME."),
    tokenizer: Path | None = typer.Option(None, help="A folder with CLIP's tokenizer, which the file does not hold."),
    config: Path | None = typer.Option(
        None, help="A diffusers folder of the same architecture, for its configs and tokenizer; needed for SD-2.x."
    ),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Turn a single-file checkpoint (most fine-tunes of SD-1.5) into a diffusers folder, to be a teacher.

    Configs of SD-1.x are built in; the tokenizer is the same for all of SD-1.x, and a few MB:

    hf download openai/clip-vit-large-patch14 --include "*.json" "*.txt" --local-dir clip
    rcdeploy import dreamy.safetensors --tokenizer clip

    Then set teacher.path = "models/dreamy" in a recipe.
    """
    from ..checkpoint_import import import_checkpoint, read_checkpoint_header

    read_checkpoint_header(checkpoint)
    target = folder or Path("models") / checkpoint.stem
    quieten_libraries()
    quiet = quiet or as_json
    import_checkpoint(
        checkpoint,
        target,
        config=config,
        tokenizer=tokenizer,
        log=lambda text: None if quiet else err.print(text, style="dim", soft_wrap=True),
    )
    if as_json:
        out.print_json(json.dumps({"folder": str(target)}))
    elif not quiet:
        out.print(f'{target}\nUse it as a teacher:  teacher.path = "{target}"', soft_wrap=True, highlight=False)
