"""What was measured of one candidate, and what that says beside the default."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..noise_schedule import Array
from ..sampling_defaults import SamplingDefaults
from ..session_options import SessionOptions

MIN_SPEEDUP = 1.05
"""a smaller ratio is within what one machine's timings vary"""
AS_NEAR = 1.1
"""times the default's difference from the reference: other threads add up in another order"""
MIN_IMAGES = 2
"""that both have drawn: one timing is no measurement"""


@dataclass(eq=False)
class Measurement:
    """One candidate.

    Attributes:
        options: of the candidate.
        precision: its name, of the package's UNet where the options do not say.
        problem: why there are no timings to judge by; "" where there are.
        load_seconds: until its package was loaded.
        seconds: of each image, by its number, with all of the package's own steps.
        elapsed: of each image as it was drawn, perhaps with fewer steps.
        images: the pixels of the first ones, by number.
        memory_bytes: its process's peak.
        grey_levels: mean absolute difference of its images from the reference's, of 255: the largest of the images'.
    """

    options: SessionOptions
    precision: str
    problem: str = ""
    load_seconds: float | None = None
    seconds: dict[int, float] = field(default_factory=dict)
    elapsed: list[float] = field(default_factory=list)
    images: dict[int, Array] = field(default_factory=dict)
    memory_bytes: int | None = None
    grey_levels: float | None = None

    @property
    def median(self) -> float:
        """Seconds an image; infinite where none was drawn."""
        return statistics.median(self.seconds.values()) if self.seconds else float("inf")

    def compare(self, reference: Measurement) -> None:
        """Sets grey_levels, from the images that both have."""
        common = sorted(self.images.keys() & reference.images.keys())
        differences = [np.abs(self.images[k].astype(int) - reference.images[k]).mean() for k in common]
        self.grey_levels = float(max(differences)) if differences else None

    def admitted(self, max_grey_levels: float, default: Measurement) -> bool:
        """Whether it was measured, and its images are the reference's or as near to them as the default's."""
        limit = max(max_grey_levels, AS_NEAR * (default.grey_levels or 0))
        return not self.problem and self.grey_levels is not None and self.grey_levels <= limit

    def speedup(self, default: Measurement) -> float:
        """How many times as fast as the default: the median over images that both drew, in turns where they did."""
        return statistics.median(self._ratios(default) or [0.0])

    def pays(self, default: Measurement) -> bool:
        """Whether it is faster than the default, on nine images of ten."""
        ratios = self._ratios(default)
        return len(ratios) >= MIN_IMAGES and self.speedup(default) >= MIN_SPEEDUP and _tenths(ratios)[0] > 1

    def _ratios(self, default: Measurement) -> list[float]:
        return [default.seconds[k] / self.seconds[k] for k in self.seconds.keys() & default.seconds.keys()]

    def row(self, verdict: str) -> dict[str, Any]:
        """JSON-able."""
        p10, p90 = _tenths(list(self.seconds.values()))
        return {
            "backend": self.options.backend,
            "device": self.options.device,
            "precision": self.precision,
            "threads": self.options.threads,
            "seconds": self.median if self.seconds else None,
            "p10": p10,
            "p90": p90,
            "images": len(self.seconds),
            "load_seconds": self.load_seconds,
            "memory_bytes": self.memory_bytes,
            "grey_levels": self.grey_levels,
            "verdict": verdict,
        }


def image_seconds(stages: Mapping[str, float], sampling: SamplingDefaults, own: SamplingDefaults) -> float:
    """Seconds of an image with the package's own steps, from the stages of one with those of `sampling`."""
    return stages["text"] + stages["unet"] * own.unet_calls / sampling.unet_calls + stages["decode"]


def _tenths(seconds: list[float]) -> tuple[Any, Any]:
    """10th and 90th percentile; (None, None) of none."""
    if not seconds:
        return None, None
    if len(seconds) == 1:
        return seconds[0], seconds[0]
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return tenths[0], tenths[-1]
