"""What /metrics says, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
IMAGES = (1, 2, 3, 4, 6, 8, 10)


class Metrics:
    """waiting: the number of requests in the queue."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rcdeploy_requests", "Answered requests.", ["route", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "rcdeploy_request_seconds", "From request to answer.", ["route"], buckets=SECONDS, registry=self._registry
        )
        self._images = Counter("rcdeploy_images", "Images drawn.", registry=self._registry)
        self._batch_images = Histogram(
            "rcdeploy_batch_images", "Images drawn together.", buckets=IMAGES, registry=self._registry
        )
        self._batch_seconds = Histogram(
            "rcdeploy_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=self._registry
        )
        queue = Gauge("rcdeploy_queue_requests", "Requests that wait.", registry=self._registry)
        queue.set_function(waiting)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def drawn(self, images: int, seconds: float) -> None:
        self._images.inc(images)
        self._batch_images.observe(images)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
