"""What Prometheus may read: requests by route template, never by address; jobs by state."""

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The instruments of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "graftwork_requests_total",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "graftwork_request_seconds",
            "From the first byte asked to the last byte answered.",
            ("route", "method"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._jobs = Gauge(
            "graftwork_jobs", "Jobs in each state.", ("state",), registry=self._registry
        )
        self._up = Gauge("graftwork_up", "This process answers.", registry=self._registry)
        self._up.set(1)

    def observe(self, route: str, *, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, method, status).inc()
        self._seconds.labels(route, method).observe(seconds)

    def show_jobs(self, counts: Mapping[str, int]) -> None:
        """Set how many jobs are in each state."""
        self._jobs.clear()
        for state, count in counts.items():
            self._jobs.labels(state).set(count)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
