"""rcdeploy bench"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from ..units import giga_text
from .console import err, out, parse_size, quieten_libraries, stages
from .options import QUIET

Table = tuple[str, list[dict[str, Any]]]
PARTS = {"text_encoder": "text", "unet": "UNet", "vae_decoder": "decoder"}
SAME = "same"
WORDS = ("subject", "backend", "part")


def bench_command(
    subjects: list[str] = typer.Argument(
        None, help="Runs, packages, diffusers folders, students of SD-1.4 by name (sd-1.4: their teacher)."
    ),
    backend: list[str] = typer.Option(
        None, help="torch, torch.compile (slow to start), onnxruntime, openvino, tensorrt; repeatable."
    ),
    size: str | None = typer.Option(None, metavar="HxW", help="Of the pictures, in pixels; the first subject's own."),
    sizes: str = typer.Option("", metavar="HxW,...", help="Time UNet and decoder at these sizes too: 64x64,128x64."),
    steps: int = typer.Option(25, help="Denoising steps of a picture."),
    guidance_scale: float = typer.Option(7.5, help="Above 1 each step asks the UNet for two rows."),
    runs: int = typer.Option(9, help="Timed calls of each part, after one that warms up."),
    threads: int | None = typer.Option(None, help="Of the processor; torch's choice by default."),
    device: str = typer.Option("auto", help="auto, cpu, cuda."),
    timed: bool = typer.Option(True, "--time/--no-time", help="--no-time: what is the same on every machine, alone."),
    random_weights: bool = typer.Option(
        False, "--random-weights", help="Time students by name too, with random weights."
    ),
    markdown: bool = typer.Option(False, "--markdown", help="Tables to paste into a README."),
    as_json: bool = typer.Option(False, "--json", help="Every figure as JSON, seconds and bytes."),
    quiet: bool = QUIET,
) -> None:
    """Say what models cost, side by side: size, multiply-accumulates, time, memory. By default the newest run.

    The first is what the others are compared with; the newest run stands behind its teacher. Each is loaded in a
    process of its own, on its usual backend (a package's is its format); then timed calls go round in turns.
    "same" is same within the spread: the middle 80 % of both timings overlap, so neither is the faster one.

    rcdeploy bench runs/quickstart packages/quickstart-onnx --markdown
    rcdeploy bench sd-1.4 c-micro b-tiny --no-time
    rcdeploy bench c-micro --random-weights --size 256x256 --steps 1 --runs 3
    """
    if markdown and as_json:
        raise RcdeployError("--markdown and --json exclude each other")
    quieten_libraries()
    from ..bench.latency import Settings, bench
    from ..machine import busy_words
    from ..model_description import describe_model
    from ..model_folder import resolve_all

    settings = Settings(
        size=parse_size(size) if size else None,
        sizes=tuple(parse_size(text, "--sizes") for text in sizes.split(",") if text),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        runs=runs,
        threads=threads,
        device=device,
        backends=tuple(dict.fromkeys(backend or ())),
        time=timed,
        random_weights=random_weights,
    )
    found = [describe_model(model) for model in resolve_all(subjects or ())]
    busy = busy_words() if timed and not quiet else None
    with stages(quiet or as_json) as progress:
        result = bench(found, settings, progress)
    if as_json:
        out.print_json(json.dumps(result))
        return
    for title, rows in tables(result):
        if markdown:
            out.print(f"{title}\n\n{pipe_table(rows)}\n", markup=False, highlight=False, soft_wrap=True)
        else:
            _show(title, rows)
    if busy:
        err.print(busy, style="yellow", soft_wrap=True)
    if timed and not quiet and not any(row["backends"] for row in result["subjects"]):
        err.print("Nothing was timed: named students have no weights; --random-weights times them with random ones.")


def tables(result: dict[str, Any]) -> list[Table]:
    """(title, rows) of costs and, where something was timed, of times and of processes; cells are ready to show."""
    asked = result["settings"]
    size = f"{asked['height']} x {asked['width']} pixels"
    drawn = f"{size}, {asked['num_inference_steps']} steps, guidance {asked['guidance_scale']:g}"
    made: list[Table] = [(f"Costs at {drawn}; a call of one row; x: times the first", _cost_rows(result))]
    times, processes = _time_rows(result), _process_rows(result)
    if times:
        machine = result["machine"]
        runs = next(found for *_, found in _timed(result))["timings"]["image"]["runs"]
        where = f"{asked['device']}, {machine['processor']}, threads: {asked['threads']}, runs: {runs}"
        made.append((f"Milliseconds at {drawn}; {where}; x: times the first; same: within the spread", times))
        gemm = machine["gemm_gmacs_per_second"]
        made.append(
            (
                f"Processes: seconds to the first picture, peak memory; matrix product (GEMM): {gemm:,.0f} GMAC/s",
                processes,
            )
        )
    return made


def _show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """On the terminal, without lines between columns: figures stay whole at 80 characters."""
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in rows[0]:
        words = head in WORDS
        grid.add_column(head, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    several = len({row["subject"] for row in rows}) < len(rows)
    for before, row in zip([None, *rows], rows, strict=False):
        repeated = before is not None and before["subject"] == row["subject"]
        if before is not None and not repeated and several:
            grid.add_section()
        grid.add_row("" if repeated else row["subject"], *(_text(row[head]) for head in list(row)[1:]))
    out.print(grid)


def pipe_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_text(row[head]) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


def _cost_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows, first = [], {}  # type: tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]
    for subject in result["subjects"]:
        parts = {PARTS[name]: costs for name, costs in subject["components"].items()}
        parts["picture"] = {**_sums(subject["components"]), **subject["image"]}
        first = first or parts
        for part, costs in parts.items():
            base = first[part]
            rows.append(
                {
                    "subject": subject["name"],
                    "part": part,
                    "parameters": costs["parameters"],
                    "x size": costs["parameters"] / base["parameters"],
                    "MB": None if costs["bytes"] is None else costs["bytes"] / 1e6,
                    "GMACs, THOP": giga_text(costs["macs_thop"]),
                    "GMACs": giga_text(costs["macs"]),
                    "x GMACs": costs["macs"] / base["macs"],
                }
            )
    return rows


def _sums(components: dict[str, dict[str, Any]]) -> dict[str, Any]:
    sizes = [part["bytes"] for part in components.values()]
    return {
        "parameters": sum(part["parameters"] for part in components.values()),
        "bytes": None if None in sizes else sum(sizes),
    }


def _timed(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(subject, backend and its precision if not fp32, what was measured) of all that was timed."""
    return [
        (subject["name"], backend if found["precision"] == "fp32" else f"{backend} {found['precision']}", found)
        for subject in result["subjects"]
        for backend, found in subject["backends"].items()
    ]


def _time_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    from ..bench.costs import branches
    from ..bench.latency import ratio

    unet_rows = branches(result["settings"]["guidance_scale"])
    rows, first = [], {}  # type: tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]
    for name, backend, found in _timed(result):
        called = {**PARTS, "unet": f"UNet, {unet_rows} row{'s' * (unet_rows > 1)}"}
        parts = {called.get(part, "picture"): timing for part, timing in found["timings"].items()}
        for at, timings in found["sizes"].items():
            parts |= {f"{PARTS[part]} {at}": timing for part, timing in timings.items()}
        base, first = first, first or parts
        for part, timing in parts.items():
            against = ratio(timing, base[part]) if base else 1.0
            rows.append(
                {
                    "subject": name,
                    "backend": backend,
                    "part": part,
                    "median": _ms(timing["median"]),
                    "p90": _ms(timing["p90"]),
                    "min-max": f"{_ms(timing['min'])}-{_ms(timing['max'])}",
                    "x": SAME if against is None else against,
                }
            )
    return rows


def _process_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, backend, found in _timed(result):
        memory, share = found["peak_memory_bytes"], found["share_of_gemm"]
        rows.append(
            {
                "subject": name,
                "backend": backend,
                "import": found["import_seconds"],
                "load": found["load_seconds"],
                "picture": found["first_image_seconds"],
                "MB": None if memory is None else round(memory / 1e6),
                "GMAC/s": found["gmacs_per_second"],
                "% of GEMM": None if share is None else 100 * share,
            }
        )
    return rows


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 1 else f"{seconds * 1e3:.3g}"
