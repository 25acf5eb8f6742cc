"""rcdeploy bench"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from ..units import giga_text
from .console import (
    out,
    parse_size,
    print_json,
    print_unbroken,
    print_warning,
    quieten_libraries,
    resumable,
    stages,
)
from .options import DEVICE, JSON, QUIET, THREADS

Table = tuple[str, list[dict[str, Any]]]
COMPONENT_TITLES = {"text_encoder": "text", "unet": "UNet", "vae_decoder": "decoder"}
IMAGE = "image"
SAME = "same"
OWN = "each model's own"
TEXT_COLUMNS = ("model", "backend", "part")


def bench_command(
    models: list[str] = typer.Argument(
        None,
        metavar="MODEL",
        help="Runs, packages, diffusers folders, or names: a student of SD-1.4, sd-1.4, sd-2.1-base, sd-2.1, "
        "and students of these as sd-2.1:b-tiny.",
        show_default="the newest run and its teacher",
    ),
    backend: list[str] = typer.Option(
        None, help="torch, torch.compile (slow to start), onnxruntime, openvino, tensorrt; repeatable."
    ),
    size: str | None = typer.Option(
        None, metavar="HxW", help="Size of the images in pixels; by default the first model's own."
    ),
    sizes: str = typer.Option("", metavar="HxW,...", help="Time UNet and decoder at these sizes too: 64x64,128x64."),
    steps: int | None = typer.Option(None, help="Denoising steps of an image.", show_default=OWN),
    guidance_scale: float | None = typer.Option(
        None, help="Above 1, each step runs the UNet with a batch of two.", show_default=OWN
    ),
    sampler: str | None = typer.Option(None, help="ddim, dpm++, lcm, tcd ...", show_default=OWN),
    runs: int = typer.Option(9, help="Timed calls of each part, after one that warms up."),
    threads: int | None = THREADS,
    device: str = DEVICE,
    timed: bool = typer.Option(
        True, "--time/--no-time", help="--no-time: only count what is the same on every machine."
    ),
    random_weights: bool = typer.Option(
        False, "--random-weights", help="Time students by name too, with random weights."
    ),
    markdown: bool = typer.Option(False, "--markdown", help="Print tables for a README."),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Compare models side by side: size, multiply-accumulates, time and memory.

    The other models are compared with the first. Each is loaded in a process of its own, on its default backend (a
    package's is its format); the timed calls of all processes then take turns. "same" means that the middle 80 % of
    both timings overlap, so neither is faster.

    rcdeploy bench runs/quickstart packages/quickstart-onnx --markdown
    rcdeploy bench sd-1.4 c-micro b-tiny --no-time
    rcdeploy bench sd-2.1 sd-2.1:b-tiny sd-2.1:c-micro --no-time
    rcdeploy bench c-micro --random-weights --size 256x256 --steps 1 --runs 3
    """
    if markdown and as_json:
        raise RcdeployError("--markdown and --json exclude each other")
    image_size = parse_size(size) if size else None
    further_sizes = tuple(parse_size(text, "--sizes") for text in sizes.split(",") if text)
    from ..model_description import describe_model
    from ..model_folder import resolve_all

    descriptions = [describe_model(model) for model in resolve_all(models or ())]
    quieten_libraries()
    from ..bench.latency import Settings, bench

    settings = Settings(
        size=image_size,
        sizes=further_sizes,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        runs=runs,
        threads=threads,
        device=device,
        backends=tuple(dict.fromkeys(backend or ())),
        time=timed,
        random_weights=random_weights,
    )
    with resumable("Timings are not kept; nothing was written."), stages(quiet or as_json) as progress:
        result = bench(descriptions, settings, progress)
    if as_json:
        print_json(result)
        return
    for title, rows in tables(result):
        if markdown:
            out.print(f"{title}\n\n{pipe_table(rows)}\n", markup=False, highlight=False, soft_wrap=True)
        else:
            _print_table(title, rows)
    for warning in result["warnings"]:
        print_warning(warning)
    if timed and not quiet and not any(row["backends"] for row in result["subjects"]):
        print_warning("Nothing was timed: students by name have no weights. Add --random-weights to time them.")


def tables(result: dict[str, Any]) -> list[Table]:
    """(title, rows) of costs and, where something was timed, of times and of processes; values are formatted."""
    from ..bench.latency import sampling_text

    settings = result["settings"]
    image = f"{settings['height']} x {settings['width']} pixels, {sampling_text(settings)}"
    costs: Table = (f"Costs at {image}; calls with a batch of one; x: times the first", _cost_rows(result))
    time_rows = _time_rows(result)
    if not time_rows:
        return [costs]
    machine = result["machine"]
    runs = _timed(result)[0][2]["timings"]["image"]["runs"]
    where = f"{settings['device']}, {machine['processor']}, threads: {settings['threads']}, runs: {runs}"
    gemm = machine["gemm_gmacs_per_second"]
    return [
        costs,
        (f"Milliseconds at {image}; {where}; x: times the first; same: within the spread", time_rows),
        (
            f"Processes: seconds to the first image, peak memory; matrix product (GEMM): {gemm:,.0f} GMAC/s",
            _process_rows(result),
        ),
    ]


def _print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """On the terminal, without lines between columns: numbers stay whole at 80 characters."""
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in rows[0]:
        is_text = column in TEXT_COLUMNS
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    grouped = len({row["model"] for row in rows}) < len(rows)
    for previous, row in zip([None, *rows], rows, strict=False):
        repeated = previous is not None and previous["model"] == row["model"]
        if previous is not None and not repeated and grouped:
            table.add_section()
        table.add_row("" if repeated else row["model"], *(_format(row[column]) for column in list(row)[1:]))
    print_unbroken(table)


def pipe_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_format(row[column]) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(value.replace("|", "\\|") for value in line) + " |" for line in lines)


def _format(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


def _cost_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    for model in result["subjects"]:
        parts = {COMPONENT_TITLES[name]: costs for name, costs in model["components"].items()}
        parts[IMAGE] = {**_sums(model["components"]), **model["image"]}
        first = first or parts
        for part, costs in parts.items():
            title = part
            if part == IMAGE and result["settings"]["num_inference_steps"] is None:
                title = f"{IMAGE}, {model['sampling']['num_inference_steps']} steps"
            rows.append(
                {
                    "model": model["name"],
                    "part": title,
                    "parameters": costs["parameters"],
                    "x size": costs["parameters"] / first[part]["parameters"],
                    "MB": None if costs["bytes"] is None else costs["bytes"] / 1e6,
                    "GMACs, THOP": giga_text(costs["macs_thop"]),
                    "GMACs": giga_text(costs["macs"]),
                    "x GMACs": costs["macs"] / first[part]["macs"],
                }
            )
    return rows


def _sums(components: dict[str, dict[str, Any]]) -> dict[str, Any]:
    sizes = [costs["bytes"] for costs in components.values()]
    return {
        "parameters": sum(costs["parameters"] for costs in components.values()),
        "bytes": None if None in sizes else sum(sizes),
    }


def _timed(result: dict[str, Any]) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """(model, backend with its precision if not fp32, measurement) of all that was timed."""
    return [
        (model, name if m["precision"] == "fp32" else f"{name} {m['precision']}", m)
        for model in result["subjects"]
        for name, m in model["backends"].items()
    ]


def _time_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    from ..bench.latency import ratio

    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    for model, backend, measurement in _timed(result):
        titles = {**COMPONENT_TITLES, "unet": f"UNet, batch of {model['unet_batch_size']}"}
        parts = dict(measurement["timings"])
        for at, sized in measurement["sizes"].items():
            parts |= {f"{COMPONENT_TITLES[part]} {at}": timings for part, timings in sized.items()}
        for part, timings in parts.items():
            relative = ratio(timings, first[part]) if first else 1.0
            rows.append(
                {
                    "model": model["name"],
                    "backend": backend,
                    "part": titles.get(part, part),
                    "median": _milliseconds(timings["median"]),
                    "p90": _milliseconds(timings["p90"]),
                    "min-max": f"{_milliseconds(timings['min'])}-{_milliseconds(timings['max'])}",
                    "x": SAME if relative is None else relative,
                }
            )
        first = first or parts
    return rows


def _process_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for model, backend, measurement in _timed(result):
        memory = measurement["peak_memory_bytes"]
        share = measurement["share_of_gemm"]
        rows.append(
            {
                "model": model["name"],
                "backend": backend,
                "import": measurement["import_seconds"],
                "load": measurement["load_seconds"],
                "image": measurement["first_image_seconds"],
                "MB": None if memory is None else round(memory / 1e6),
                "GMAC/s": measurement["gmacs_per_second"],
                "% of GEMM": None if share is None else 100 * share,
            }
        )
    return rows


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 1 else f"{seconds * 1e3:.3g}"
