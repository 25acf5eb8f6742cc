"""Costs as bars beside the teacher's, in words and shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..bench.costs import component_costs, image_macs
from ..bench.latency import ratio
from ..model_description import ModelDescription
from ..units import bytes_text, count_text, seconds_text

Bars = dict[str, Any]
"""{"key", "title", "rows": [{"name", "text", "share", "bar", "note"}]}; share: of the teacher's (None where there is no
teacher, or no difference); bar: of the longest row"""


def cost_bars(
    subjects: Mapping[str, ModelDescription], size: tuple[int, int], num_inference_steps: int, guidance_scale: float
) -> list[Bars]:
    """What is the same on every machine: of teacher and student (its package computes the same), and all bytes.

    subjects: under "teacher", "student" and "package", those there are. size: of a picture, (height, width) in pixels.
    """
    costs = {name: component_costs(subject, size) for name, subject in subjects.items()}
    nets = {name: parts for name, parts in costs.items() if name != "package"}
    image = {name: image_macs(parts, num_inference_steps, guidance_scale) for name, parts in nets.items()}
    weights = {n: sum(p["bytes"] for p in parts.values()) for n, parts in costs.items() if subjects[n].weight_bytes}
    figures = (
        ("parameters", "UNet parameters", {n: p["unet"]["parameters"] for n, p in nets.items()}, count_text),
        (
            "macs_thop",
            "UNet MACs a step, as THOP counts",
            {n: p["unet"]["macs_thop"] for n, p in nets.items()},
            count_text,
        ),
        ("macs", "UNet MACs a step, attention included", {n: p["unet"]["macs"] for n, p in nets.items()}, count_text),
        ("image", "MACs of a picture, all networks", {n: m["macs"] for n, m in image.items()}, count_text),
        ("bytes", "Weights of the networks that draw", weights, bytes_text),
    )
    return [_bars(k, title, {n: (v, unit(v)) for n, v in rows.items()}) for k, title, rows, unit in figures if rows]


def _bars(key: str, title: str, rows: Mapping[str, tuple[float, str]], base: str | None = "teacher") -> Bars:
    """rows: value and words by name. base: the row that shares are of."""
    whole = rows[base][0] if base and base in rows else None
    longest = max(value for value, _ in rows.values())
    return {
        "key": key,
        "title": title,
        "rows": [
            {"name": name, "text": text, "share": value / whole if whole else None, "bar": value / longest, "note": ""}
            for name, (value, text) in rows.items()
        ],
    }


def bench_bars(bench: Mapping[str, Any]) -> list[Bars]:
    """What was timed, a row for each subject and backend, beside the teacher (the first subject that is a pipeline)."""
    found = {
        f"{subject['name']}, {backend}": measured
        for subject in bench["subjects"]
        for backend, measured in subject["backends"].items()
    }
    pipelines = [s["name"] for s in bench["subjects"] if s["kind"] == "pipeline"]
    base = next((name for name in found if pipelines and name.startswith(f"{pipelines[0]}, ")), None)
    times = {name: measured["timings"]["image"] for name, measured in found.items()}
    if not times:
        return []
    image = _bars("time", "One picture", {n: (t["median"], seconds_text(t["median"])) for n, t in times.items()}, base)
    for row in image["rows"]:
        timing = times[row["name"]]
        row["note"] = f"{seconds_text(timing['p10'])} to {seconds_text(timing['p90'])}"
        if base and row["name"] != base:
            row["share"] = ratio(timing, times[base])
            row["note"] += ", the same within the spread" if row["share"] is None else ""
    others = [
        _bars(key, title, {n: (m[key], unit(m[key])) for n, m in found.items() if m[key] is not None}, base)
        for key, title, unit in TIMED
        if any(m[key] is not None for m in found.values())
    ]
    return [image, *others]


TIMED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("first_image_seconds", "First picture, once loaded", seconds_text),
    ("load_seconds", "Loading", seconds_text),
    ("peak_memory_bytes", "Memory at its peak", bytes_text),
)
"""of a bench's result, beside the time of a picture: key, title, how it is said"""
