"""Costs as bars beside the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from ..bench.costs import component_costs, image_macs
from ..bench.latency import ratio
from ..model_description import ModelDescription
from ..units import bytes_text, count_text, seconds_text

Bars = dict[str, Any]
"""{"key", "title", "rows": [{"name", "text", "share", "bar", "note"}]}; share: of the teacher's (None where there is no
teacher, or no difference); bar: of the longest row"""

TIMED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("first_image_seconds", "First image, once loaded", seconds_text),
    ("load_seconds", "Loading", seconds_text),
    ("peak_memory_bytes", "Peak memory", bytes_text),
)
"""of a bench's result, beside the time of an image: key, title, format"""


def cost_bars(
    models: Mapping[str, ModelDescription],
    image_size: tuple[int, int],
    samplings: Mapping[str, SamplingDefaults],
) -> list[Bars]:
    """Costs that are the same on every machine.

    Args:
        models: "teacher", "student" and "package", those that there are. MACs are of the first two only: the package
            computes the same as the student.
        image_size: (height, width) in pixels.
        samplings: of an image, by model.
    """
    costs = {name: component_costs(model, image_size) for name, model in models.items()}
    networks = {name: components for name, components in costs.items() if name != "package"}
    unets = {name: components["unet"] for name, components in networks.items()}
    images = {
        name: image_macs(
            c, samplings[name].unet_calls, samplings[name].guidance_scale, models[name].takes_guidance_scale
        )
        for name, c in networks.items()
    }
    weights = {n: sum(c["bytes"] for c in costs[n].values()) for n, model in models.items() if model.weight_bytes}
    groups: list[tuple[str, str, dict[str, float], Callable[[float], str]]] = [
        ("parameters", "UNet parameters", {n: unet["parameters"] for n, unet in unets.items()}, count_text),
        ("macs_thop", "UNet MACs per step, as THOP counts", {n: u["macs_thop"] for n, u in unets.items()}, count_text),
        ("macs", "UNet MACs per step, attention included", {n: u["macs"] for n, u in unets.items()}, count_text),
        ("image", "MACs of an image, all networks", {n: macs["macs"] for n, macs in images.items()}, count_text),
        ("bytes", "Weights of the networks that make an image", weights, bytes_text),
    ]
    return [
        _bars(key, title, {n: (value, text(value)) for n, value in values.items()})
        for key, title, values, text in groups
        if values
    ]


def bench_bars(bench: Mapping[str, Any]) -> list[Bars]:
    """Timings, a row for each model and backend, beside the teacher's (the first model that is a pipeline)."""
    measurements = {
        f"{model['name']}, {backend}": measurement
        for model in bench["subjects"]
        for backend, measurement in model["backends"].items()
    }
    pipelines = [model["name"] for model in bench["subjects"] if model["kind"] == "pipeline"]
    base = next((name for name in measurements if pipelines and name.startswith(f"{pipelines[0]}, ")), None)
    times = {name: measurement["timings"]["image"] for name, measurement in measurements.items()}
    if not times:
        return []
    image = _bars("time", "One image", {n: (t["median"], seconds_text(t["median"])) for n, t in times.items()}, base)
    for row in image["rows"]:
        timing = times[row["name"]]
        row["note"] = f"{seconds_text(timing['p10'])} to {seconds_text(timing['p90'])}"
        if base and row["name"] != base:
            row["share"] = ratio(timing, times[base])
            row["note"] += ", the same within the spread" if row["share"] is None else ""
    others = []
    for key, title, text in TIMED:
        values = {name: m[key] for name, m in measurements.items() if m[key] is not None}
        if values:
            others.append(_bars(key, title, {name: (value, text(value)) for name, value in values.items()}, base))
    return [image, *others]


def _bars(key: str, title: str, rows: Mapping[str, tuple[float, str]], base: str | None = "teacher") -> Bars:
    """rows: name -> (value, text). base: the row that shares are of."""
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
