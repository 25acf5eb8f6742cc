"""The one thread that draws: batch after batch, until the queue is stopped and empty."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from ..generation import Result, Step
from ..text_to_image import TextToImage
from .jobs import Failed, Finished, Job, JobQueue, Progress
from .metrics import Metrics

LOG = logging.getLogger("rcdeploy_runtime.server")


class Worker(threading.Thread):
    """Owns the models. Every image of a batch is the one that its seed gives alone, to one grey level."""

    def __init__(self, models: Mapping[str, TextToImage], queue: JobQueue, metrics: Metrics) -> None:
        super().__init__(name="worker", daemon=True)
        self._models, self._queue, self._metrics = models, queue, metrics

    def run(self) -> None:
        while batch := self._queue.take():
            try:
                self._draw(batch)
            except Exception:
                if len(batch) == 1:
                    self._fail(batch[0])
                for job in batch if len(batch) > 1 else []:  # one of them may be to blame: each by itself
                    try:
                        self._draw([job])
                    except Exception:
                        self._fail(job)

    def _fail(self, job: Job) -> None:
        LOG.exception("generation failed")
        job.send(Failed())

    def _draw(self, batch: list[Job]) -> None:
        begun = time.perf_counter()
        prompts = [job.prompt for job in batch for _ in job.seeds]
        seeds = [seed for job in batch for seed in job.seeds]
        model = self._models[batch[0].shape.model]
        for event in model.stream(prompts, seed=seeds, **batch[0].arguments()):
            if all(job.cancelled for job in batch):
                return
            first = 0
            for job in batch:
                images = slice(first, first + len(job.seeds))
                first += len(job.seeds)
                if isinstance(event, Step):
                    job.send(Progress(event.completed, event.total, event.previews[images]))
                elif isinstance(event, Result):
                    job.send(Finished(event.images[images]))
        seconds = time.perf_counter() - begun
        self._queue.took(len(seeds), seconds)
        self._metrics.drawn(len(seeds), seconds)
        LOG.info("batch", extra={"requests": len(batch), "images": len(seeds), "seconds": round(seconds, 4)})
