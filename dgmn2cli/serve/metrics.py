"""What `/metrics` tells: counts of a server since it began, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

TYPE = CONTENT_TYPE_PLAIN_0_0_4
BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """The counts; any thread may change them.

    Args:
        places: for requests.
        taken: tells how many of them are taken now.
    """

    def __init__(self, places: int, taken: Callable[[], float]) -> None:
        disable_created_metrics()
        self._registry = own = CollectorRegistry()
        self._requests = Counter("dgmn2_requests", "Requests answered.", ("path", "status"), registry=own)
        self._seconds = Histogram(
            "dgmn2_request_seconds", "Time to the answer.", ("path",), buckets=BOUNDS, registry=own
        )
        self.windows = Counter("dgmn2_windows", "Windows that went through the network.", registry=own)
        self.busy = Counter("dgmn2_busy_seconds", "Time that the network's thread worked.", registry=own)
        Gauge("dgmn2_places", "Places for requests.", registry=own).set(places)
        Gauge("dgmn2_places_taken", "Places that are taken.", registry=own).set_function(taken)
        ProcessCollector(registry=own)

    def count(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
