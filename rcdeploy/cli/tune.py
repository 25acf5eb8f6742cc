"""rcdeploy tune"""

from __future__ import annotations

import typer

from .console import print_json, print_line, resumable, stages
from .options import JSON, QUIET


def tune_command(
    package: str = typer.Argument(help="A package (folder or .zip) that rcdeploy export wrote.", show_default=False),
    seconds: float = typer.Option(60, help="To measure for; fewer where nothing is left to measure."),
    max_difference: float = typer.Option(
        4.0, help="Mean grey levels, of 255, by which an image may differ from the reference's."
    ),
    digest: str | None = typer.Option(
        None, help="sha256:..., which the package must have; `rcdeploy package digest` prints it."
    ),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Measure what draws fastest from a package on this machine, and keep that for later.

    Backends, precisions and numbers of threads are measured in processes of their own, in turns, and their images are
    compared with those of the package's own backend in fp32. What is faster, beyond the spread of the timings, is kept
    in your cache folder for this package, machine and versions; generate, rcdeploy-runtime and TextToImage.load use it
    unless they are told a device, threads, a backend or a precision, or --no-tuned. The package stays as it is.

    rcdeploy tune packages/quickstart-onnx --seconds 30
    """
    from rcdeploy_runtime.package import Package
    from rcdeploy_runtime.tuning.outcome import keep_choice, result_json, text_table
    from rcdeploy_runtime.tuning.search import tune

    files = Package(package, digest=digest)
    with resumable("Nothing was written."), stages(quiet or as_json) as progress:
        result = tune(
            files,
            seconds,
            max_difference,
            lambda passed, _candidate: progress("tuning, seconds", min(int(passed), int(seconds)), int(seconds)),
        )
    if as_json:
        print_json({**result_json(files, result), "kept": str(keep_choice(files, result))})
        return
    print_line(text_table(files, result))
    print_line(f"kept in {keep_choice(files, result)}")
