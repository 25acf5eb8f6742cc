"""Requests that wait to be drawn, and which of them are drawn together."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..images import ImageLike


@dataclass(frozen=True)
class Shape:
    """What requests must have in common to be drawn as one batch."""

    model: str
    height: int
    width: int
    num_inference_steps: int
    sampler: str
    guidance_scale: float
    negative_prompt: str = ""
    preview: str | None = None
    decode_tile: int | None = None


@dataclass(frozen=True)
class Progress:
    """A step is done. previews: one for each image of the job, where it asked for them."""

    completed: int
    total: int
    previews: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Finished:
    images: list[Image.Image]


@dataclass(frozen=True)
class Failed:
    """The generation raised an exception, which the worker has logged."""


@dataclass(frozen=True)
class Gone:
    """The client went away."""


@dataclass(frozen=True)
class Late:
    """The request has waited for as long as a request may."""


Event = Progress | Finished | Failed | Gone | Late


@dataclass(eq=False)
class Job:
    """One request: `seeds` says how many images of `prompt`.

    image, mask, strength: of an edit, which is drawn by itself.
    loop: the event loop of the request, which reads `events`. timer: ends the request when it takes too long.
    """

    prompt: str
    seeds: tuple[int, ...]
    shape: Shape
    loop: asyncio.AbstractEventLoop
    image: ImageLike | None = None
    mask: ImageLike | None = None
    strength: float = 0.8
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    timer: asyncio.TimerHandle | None = None

    def goes_with(self, other: Job) -> bool:
        return self is other or (self.image is None and other.image is None and self.shape == other.shape)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of TextToImage.stream, but for prompts and seeds."""
        shape = {key: value for key, value in vars(self.shape).items() if key != "model"}
        return {**shape, "image": self.image, "mask": self.mask, "strength": self.strength}

    def send(self, event: Event) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Full(Exception):
    """The queue takes no more now. retry_after_s: when it may."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Stopped(Exception):
    """The queue takes no more."""


class JobQueue:
    """First come, first drawn, with others of the first one's shape beside it. Used from several threads.

    Args:
        capacity: jobs that wait at once.
        max_images: of one batch.
        window_s: how long the first job waits for others, from its arrival on.
    """

    def __init__(self, capacity: int, max_images: int, window_s: float) -> None:
        self._capacity, self._max_images, self._window_s = capacity, max_images, window_s
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._image_s = 0.5

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def stopped(self) -> bool:
        return self._stopped

    def put(self, job: Job) -> None:
        """Raises Full, or Stopped."""
        with self._changed:
            if self._stopped:
                raise Stopped
            if len(self._jobs) >= self._capacity:
                images = sum(len(waiting.seeds) for waiting in self._jobs)
                raise Full(max(1, math.ceil(images * self._image_s)))
            self._jobs.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """A waiting job leaves its place to others; one that is being drawn stops after the current step."""
        with self._changed:
            job.cancelled = True
            with contextlib.suppress(ValueError):
                self._jobs.remove(job)

    def take(self) -> list[Job]:
        """The next batch, of one job or more; waits for it. Empty: the queue is stopped, and nothing is left."""
        with self._changed:
            while True:
                while not self._jobs:
                    if self._stopped:
                        return []
                    self._changed.wait()
                batch = self._batch()
                left = batch[0].arrived + self._window_s - time.monotonic()
                full = sum(len(job.seeds) for job in batch) >= self._max_images
                if full or left <= 0 or self._stopped or batch[0].image is not None:
                    break
                self._changed.wait(left)
            for job in batch:
                self._jobs.remove(job)
            return batch

    def _batch(self) -> list[Job]:
        batch: list[Job] = []
        for job in self._jobs:
            images = sum(len(member.seeds) for member in batch) + len(job.seeds)
            if not batch or (job.goes_with(batch[0]) and images <= self._max_images):
                batch.append(job)
        return batch

    def took(self, images: int, seconds: float) -> None:
        """How long a batch took, for Retry-After: a moving average of the seconds an image."""
        self._image_s += 0.2 * (seconds / images - self._image_s)

    def stop(self) -> None:
        """Take no more; what waits is still drawn."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
