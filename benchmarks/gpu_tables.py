"""The tables of docs/gpu.md, from what benchmarks/gpu.py measured."""

from __future__ import annotations

import datetime
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcdeploy.machine import GPUS, describe
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing

if TYPE_CHECKING:
    from gpu import Outcome

BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"
STEP_GOAL, MEMORY_GOAL, CACHE_GOAL = 1.5, 0.7, 1.5
"""plain loop's seconds over ours at least, our memory over the plain loop's at most, ours over diffusers' at least"""


def write(page: Path, tables: str) -> None:
    """Puts the tables between the page's markers. Raises RcdeployError, and changes nothing, where there are none."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise RcdeployError(f"{page} has no lines {BEGIN} and {END}", fix="Take docs/gpu.md from the repository.")
    with replacing(page) as beside:
        beside.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def text(outcomes: list[Outcome]) -> str:
    """Everything between the markers. A table whose parts all failed is left out; the last one says why."""
    machine = describe()
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_kind.setdefault(outcome.part.name.split()[0], []).append(outcome)
    measured = {kind: [o for o in of if not o.problem and o.replies] for kind, of in by_kind.items()}
    blocks = [machine_line(machine)]
    if measured.get("step"):
        blocks += ["### A training step", steps([o.replies[-1] for o in measured["step"]], machine)]
    if measured.get("cache"):
        blocks += ["### Filling the latent cache", caches(measured["cache"][0].replies[-1])]
    if measured.get("latency"):
        blocks += ["### Latency of c-micro", latencies(measured["latency"])]
    return "\n\n".join([*blocks, "### The parts", all_parts(outcomes)])


def machine_line(machine: dict[str, Any]) -> str:
    """Card, driver, versions."""
    cards = ", ".join(f"{gpu['name']} ({gpu['memory_gb']:g} GB)" for gpu in machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{datetime.date.today()}; {cards}, driver {driver()}; {machine['processor']}, {machine['cores']} cores; "
        f"{machine['os']}, Python {machine['python']}; {versions}."
    )


def driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.split("\n")[0].strip() or "unknown"


def published_flops(card: str) -> float | None:
    """Published fp16 operations a second of the card of that name, None for one that machine.GPUS lacks."""
    for key, gpu in GPUS.items():
        words = [word for word in key.split("-") if not re.fullmatch(r"\d+g", word)]
        if all(re.search(rf"\b{word}\b", card, re.I) for word in words):
            return gpu.half_tflops * 1e12
    return None


def steps(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    first = results[0]
    peak = published_flops(machine["gpus"][0]["name"]) if machine["gpus"] else None
    of = "published fp16 rate" if peak else "rate of its matrix products, measured"
    lines = [
        f"Batch {first['batch']}, precision {first['precision']}. Goals: {STEP_GOAL} times the plain loop's speed, "
        f"{MEMORY_GOAL} of its memory. The last but one column counts the teacher once and the student three times, as "
        f"a share of the card's {of}; the last is how often the processor waits for the GPU.",
        "",
        "| student | | s a step | times plain | memory, GB | of plain's | of the rate | waits a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        base = result["rows"][0]
        for row in result["rows"]:
            if "seconds" not in row:
                lines.append(f"| {result['student']} | {row['kind']} | {row.get('error', 'not measured')} | | | | | |")
                continue
            rate = result["flops_needed"] / row["seconds"] / (peak or result["gemm_flops"])
            cells = [
                f"{row['seconds']:.4f}",
                f"{base['seconds'] / row['seconds']:.2f}" if "seconds" in base else "",
                f"{row['memory'] / 1e9:.2f}" if "memory" in row else "",
                f"{row['memory'] / base['memory']:.2f}" if "memory" in row and "memory" in base else "",
                f"{rate:.0%}",
                f"{row['synchronisations']:g}" if "synchronisations" in row else "",
            ]
            lines.append(f"| {result['student']} | {row['kind']} | {' | '.join(cells)} |")
    ours = [row for result in results for row in result["rows"][1:]]
    waits = sorted({place for row in ours for place in row.get("where", [])})
    return "\n".join([*lines, *(["", f"Ours waits at {', '.join(waits)}."] if waits else [])])


def caches(result: dict[str, Any]) -> str:
    base = result["rows"][0]["seconds"]
    lines = [
        f"{result['count']} latents, {result['steps']} DDIM steps with guidance, batch {result['batch']}, precision "
        f"{result['precision']}; both write them to disk. Goal: {CACHE_GOAL} times diffusers' pipeline. Relative "
        f"difference of the two: {result['difference']:.1e}.",
        "",
        "| | latents a second | times diffusers |",
        "|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(f"| {row['kind']} | {result['count'] / row['seconds']:.2f} | {base / row['seconds']:.2f} |")
    return "\n".join(lines)


def latencies(outcomes: list[Outcome]) -> str:
    lines = [
        "A UNet call has a batch of two, as guidance needs it; a picture is prompt to pixels. Medians.",
        "",
        "| backend | precision | runs on | ms a UNet call | s a picture | s for the first | memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        _, backend, precision = outcome.part.name.split()
        ready, *seconds = outcome.replies
        unet, image = timings(outcome, seconds)
        memory = ready.get("peak_device_memory_bytes")
        lines.append(
            f"| {backend} | {precision} | {ready['device']} | {1e3 * unet:.2f} | {image:.3f} | "
            f"{ready['first_image_seconds']:.2f} | {f'{memory / 1e9:.2f}' if memory else ''} |"
        )
    return "\n".join(lines)


def timings(outcome: Outcome, seconds: list[float]) -> tuple[float, float]:
    """Medians of the UNet's calls and of the pictures; the first of each warms up."""
    calls = outcome.part.lines.count('"unet"')
    return statistics.median(seconds[1:calls]), statistics.median(seconds[calls + 1 :])


def all_parts(outcomes: list[Outcome]) -> str:
    lines = ["| part | s | outcome |", "|---|---|---|"]
    for outcome in outcomes:
        result = (outcome.problem or in_short(outcome)).replace("|", "/")
        lines.append(f"| {outcome.part.name} | {outcome.seconds:.0f} | {result} |")
    return "\n".join(lines)


def in_short(outcome: Outcome) -> str:
    """The figure that a part is for."""
    kind = outcome.part.name.split()[0]
    if kind == "tests":
        lines = outcome.output.strip().splitlines()
        return lines[-1] if lines else "no output"
    if not outcome.replies:
        return "it printed no result"
    result = outcome.replies[-1]
    if kind == "step":
        base, *rows = result["rows"]
        ratios = [f"{base['seconds'] / r['seconds']:.2f}" for r in rows if "seconds" in base and "seconds" in r]
        return f"{' and '.join(ratios) or 'not measured'} times the plain loop (goal {STEP_GOAL})"
    if kind == "cache":
        base, own = (row["seconds"] for row in result["rows"])
        return f"{base / own:.2f} times diffusers (goal {CACHE_GOAL})"
    if kind == "latency":
        unet, image = timings(outcome, outcome.replies[1:])
        return f"{1e3 * unet:.1f} ms a UNet call, {image:.2f} s a picture"
    return "done"
