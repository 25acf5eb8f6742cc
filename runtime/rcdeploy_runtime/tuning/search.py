"""Measures candidates within a stated time, and chooses.

Every candidate is a process of its own: one that dies, or runs out of memory, is left out by name. First each draws a
few images by itself, which are compared with the reference's: every backend, device and precision, then other numbers
of threads, those of the faster ones first. The fastest few stay loaded and take turns, and the slower half of them
goes after every few turns (successive halving). The default takes part to the end.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RcdeployError
from ..generation import number
from ..machine import available_memory
from ..package import Package
from ..sampling_defaults import SamplingDefaults
from ..session_options import SessionOptions
from .candidates import default_options, not_installed, precision_name, reference_options, variants, with_threads
from .measurement import Measurement, image_seconds
from .processes import CandidateProcess, TookTooLong
from .prompts import COUNT, tuning_prompts

MIN_SECONDS, MAX_SECONDS = 1, 24 * 3_600
MAX_GREY_LEVELS = 4.0
"""bf16 of a UNet makes 2 on the embedded teacher, whose judge reads both alike; other images differ by 30 or more"""
SHARE_FOR_ALL = 0.6
"""of the time, for every candidate's own images; the turns get the rest"""
RESERVED_TURNS = 2
"""of the default and one other, for which time is left when candidates are measured by themselves"""
RIVALS = 3
"""candidates that stay loaded beside the default"""
TURNS = 12
PAUSE_SECONDS = 0.02
"""between two processes' turns: threads of the one before still spin for a while"""
HALVE_EVERY = 3
"""turns"""
TOO_SLOW = 4
"""times as slow as the fastest so far: no more is drawn"""
NEAR = 2
"""times the fastest one's seconds: only of variants as fast as this other numbers of threads are tried"""
MEMORY_MARGIN = 1.2
"""free memory, over the largest process so far, without which a loaded candidate has to go"""
SHORT_SECONDS = 0.1
"""an image as fast as this is drawn once more, untimed, before the timed one: another process ran in between, and what
that one pushed out of the processor's caches is not this one's cost"""
NO_TIME = "not measured: the time was up"

Progress = Callable[[float, str], None]
"""called with (seconds passed, what is being measured)"""


@dataclass(frozen=True)
class TuningResult:
    """What was measured. measurements: the default first. sampling: of the images. seconds: that it took."""

    measurements: list[Measurement]
    chosen: Measurement
    sampling: SamplingDefaults
    max_grey_levels: float
    seconds: float

    @property
    def default(self) -> Measurement:
        """The package's own backend, device and precision, with the library's number of threads."""
        return self.measurements[0]

    def verdict(self, m: Measurement) -> str:
        """What came of a candidate, in a few words."""
        if m.problem:
            return m.problem
        if m is self.default:
            return "default" + (", chosen: nothing else pays" if m is self.chosen else "")
        if not m.admitted(self.max_grey_levels, self.default):
            return f"not taken: its images differ by {m.grey_levels:.1f} grey levels"
        speed = f"{m.speedup(self.default):.2f} times as fast"
        if m is self.chosen:
            return f"chosen: {speed}"
        return speed if m.pays(self.default) else f"does not pay: {speed}"


def tune(
    package: Package,
    seconds: float = 60,
    max_grey_levels: float = MAX_GREY_LEVELS,
    progress: Progress = lambda _seconds, _text: None,
) -> TuningResult:
    """Measure what executes this package here, and choose the fastest that pays. Nothing is written.

    Args:
        package: verified.
        seconds: to measure for; fewer where nothing is left to measure.
        max_grey_levels: mean difference of an image from the reference's, of 255, beyond which nothing is chosen.
        progress: called about ten times a second.

    Raises:
        RcdeployError: an argument is out of range, the package's own backend cannot draw here, or the time is too short
            for it.
    """
    number("seconds", seconds, MIN_SECONDS, MAX_SECONDS)
    number("max-difference", max_grey_levels, 0, 255)
    search = _Search(package, seconds, max_grey_levels, progress)
    try:
        return search.run()
    finally:
        search.close()


class _Search:
    def __init__(self, package: Package, seconds: float, max_grey_levels: float, progress: Progress) -> None:
        self.started = time.perf_counter()
        self.package, self.seconds, self.max_grey_levels = package, seconds, max_grey_levels
        self.progress = progress
        self.own = package.sampling
        self.sampling = self.own
        self.prompts = tuning_prompts(package)
        self.images = 0
        """that every candidate draws by itself; 0 before the default has shown how long one takes"""
        self.measured: list[Measurement] = []
        self.open: dict[Measurement, CandidateProcess] = {}
        self.costs: list[float] = []
        """seconds of the candidates so far"""

    def run(self) -> TuningResult:
        default = self._measurement(default_options(self.package))
        reference = default
        self._measure(default)
        default.compare(reference)
        if default.problem:
            raise RcdeployError(
                f"{self.package.path}: its own backend, {default.options}, cannot be measured: {default.problem}",
                fix="If the time was up, give it more: --seconds.",
            )
        for options in self._candidates():
            m = self._measurement(options)
            turns = 2 * RESERVED_TURNS * max(default.elapsed)
            if self.left - sum(self.costs) / len(self.costs) < min(turns, (1 - SHARE_FOR_ALL) * self.seconds):
                m.problem = NO_TIME
                continue
            self._measure(m)
            if options == reference_options(self.package) and not m.problem:
                reference = m
            for other in self.measured:
                other.compare(reference)
            self._keep_fastest()
        self._take_turns()
        for backend in not_installed(self.package):
            self._measurement(SessionOptions(backend=backend)).problem = "not installed"
        # those that stayed to the end have the most images: of many with few, one is fast by chance
        rivals = [m for m in self.open if m is not default] or self.measured
        rivals = [m for m in rivals if self._admitted(m) and m.pays(default)]
        chosen = max(rivals, key=lambda m: m.speedup(default), default=default)
        return TuningResult(self.measured, chosen, self.sampling, self.max_grey_levels, self.elapsed)

    def close(self) -> None:
        for m in list(self.open):
            self._close(m)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.elapsed

    @property
    def default(self) -> Measurement:
        return self.measured[0]

    def _admitted(self, m: Measurement) -> bool:
        return m.admitted(self.max_grey_levels, self.default)

    def _measurement(self, options: SessionOptions) -> Measurement:
        m = Measurement(options, precision_name(self.package, options))
        self.measured.append(m)
        return m

    def _candidates(self) -> Iterator[SessionOptions]:
        """All but the default, the reference first. What comes later depends on what was measured before."""
        others = dict.fromkeys([reference_options(self.package), *variants(self.package)])
        yield from (options for options in others if options != self.default.options)
        fastest = sorted(filter(self._admitted, self.measured), key=lambda m: m.median)
        for m in fastest:
            if m.median <= NEAR * fastest[0].median:
                yield from with_threads(m.options)

    def _measure(self, m: Measurement) -> None:
        """Load it, draw once to warm it up, then the images that are compared. It stays loaded unless it failed."""
        self._make_room()
        started = time.perf_counter()
        limit = self.left / 2 if self.images else self.left
        try:
            self.open[m] = CandidateProcess(
                self.package.folder, m.options, lambda: self.progress(self.elapsed, str(m.options))
            )
            self.open[m].loaded(limit)
            m.load_seconds = time.perf_counter() - started
            self._ask(m, "", 0, 1, limit)
            if not self.images:
                self._plan(self._ask(m, "a warm-up", 0, 1, self.left)["seconds"], time.perf_counter() - started)
            for k in range(self.images):
                self._draw(m, k)
        except TookTooLong:
            slow = bool(self.images) and self.left > 0
            m.problem = f"stopped: more than {TOO_SLOW} times as slow as others" if slow else "stopped: the time was up"
        except RcdeployError as error:
            m.problem = f"failed: {' '.join(error.message.split())}"
        if m.problem:
            self._close(m)
        self.costs.append(time.perf_counter() - started)

    def _plan(self, stages: dict[str, float], start_seconds: float) -> None:
        """Choose how many images each candidate draws, and with how many steps, from those of one with one step."""
        others = len(variants(self.package)) + len(with_threads(self.default.options))
        time_for_images = SHARE_FOR_ALL * self.seconds / others - start_seconds
        fixed, step = stages["text"] + stages["decode"], stages["unet"]
        self.images = COUNT if COUNT * (fixed + step) < time_for_images else 1
        steps = int((time_for_images / self.images - fixed) / step)
        self.sampling = self.own.override(num_inference_steps=min(max(steps, 1), self.own.num_inference_steps))

    def _draw(self, m: Measurement, k: int) -> None:
        """Image k, timed."""
        text = self.prompts[k % COUNT] + (f", number {k}" if k >= self.images else "")  # a known one is not encoded
        fastest = min((x.elapsed[0] for x in self.measured if x.elapsed), default=self.left)
        limit = min(self.left, TOO_SLOW * fastest + 1)
        reply = self._ask(m, text, k, self.sampling.num_inference_steps, limit)
        m.seconds[k] = image_seconds(reply["seconds"], self.sampling, self.own)
        m.elapsed.append(float(reply["elapsed"]))
        m.memory_bytes = reply["peak_memory_bytes"]
        if k < self.images:
            m.images[k] = np.frombuffer(base64.b64decode(reply["image"]), np.uint8)

    def _ask(self, m: Measurement, prompt: str, seed: int, steps: int, limit: float) -> dict[str, Any]:
        request = {"prompt": prompt, "seed": seed, "num_inference_steps": steps}
        return self.open[m].draw(request, limit)

    def _take_turns(self) -> None:
        """Images in turns, so that other load on the machine affects all alike; the slower half goes on the way."""
        for turn in range(TURNS):
            if len(self.open) < 2 or self.default not in self.open:
                return
            for m in list(self.open):
                if self.left < 2 * max(m.elapsed):
                    return
                time.sleep(PAUSE_SECONDS)
                try:
                    if max(m.elapsed) < SHORT_SECONDS:
                        self._ask(m, "", 0, self.sampling.num_inference_steps, self.left)
                    self._draw(m, self.images + turn)
                except (TookTooLong, RcdeployError) as error:
                    self._close(m)
                    if m is not self.default:
                        m.problem = f"failed: {error}" if isinstance(error, RcdeployError) else "stopped: too slow"
            if (turn + 1) % HALVE_EVERY == 0:
                self._keep_fastest(len(self.open) // 2)

    def _keep_fastest(self, count: int = RIVALS) -> None:
        """Close all but the default and the `count` fastest that may be chosen."""
        admitted = [m for m in self.open if m is not self.default and self._admitted(m)]
        kept = [self.default, *sorted(admitted, key=lambda m: m.median)[:count]]
        for m in [m for m in self.open if m not in kept]:
            self._close(m)

    def _make_room(self) -> None:
        """Close loaded candidates, the slowest first and the default last, while memory may not do for another."""
        needed = MEMORY_MARGIN * max((m.memory_bytes or 0 for m in self.measured), default=0)
        for m in sorted(self.open, key=lambda m: (m is not self.default, m.median), reverse=True):
            free = available_memory()
            if free is None or free >= needed:
                return
            self._close(m)

    def _close(self, m: Measurement) -> None:
        with suppress(KeyError):
            self.open.pop(m).close()
