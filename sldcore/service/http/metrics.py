"""What Prometheus reads of a service: counts and durations, without a word of a prompt or anything of a key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sldcore.service.backend import Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The numbers of one app, in a registry of its own.

    Args:
        status: The state of the workers, asked for whenever the numbers are read.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sld_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._durations = Histogram(
            "sld_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("route",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._pictures = Counter(
            "sld_pictures",
            "Pictures made, by what became of them; 'failed' and 'given-up' ones were not made.",
            ("action", "policy"),
            registry=self._registry,
        )
        self._withheld = Counter(
            "sld_pictures_withheld",
            "Pictures that were not shown as generated.",
            ("policy",),
            registry=self._registry,
        )
        self._reviews = Counter(
            "sld_reviews",
            "Texts and pictures reviewed, by what was found.",
            ("action", "policy"),
            registry=self._registry,
        )
        self.audit_failures = Counter(
            "sld_audit_failures", "Records that could not be written.", registry=self._registry
        )
        self.in_flight = Gauge("sld_requests_in_flight", "Requests being answered.", registry=self._registry)
        self._registry.register(_Workers(status))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(route).observe(seconds)

    def made(self, action: str, policy: str, withheld: bool) -> None:
        """Count a picture."""
        self._pictures.labels(action, policy).inc()
        if withheld:
            self._withheld.labels(policy).inc()

    def reviewed(self, action: str, policy: str) -> None:
        """Count a review."""
        self._reviews.labels(action, policy).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Workers(Collector):
    """The workers' own numbers."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        # Empty, so that registering asks the workers nothing.
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        now = {
            "sld_queue_length": ("Jobs that wait.", status.queued),
            "sld_queue_capacity": ("Jobs that may wait.", status.capacity),
            "sld_jobs_running": ("Jobs being carried out.", status.running),
            "sld_workers": ("Workers that there should be.", status.workers),
            "sld_workers_alive": ("Workers that there are.", status.alive),
            "sld_ready": ("1 if a worker can take work.", int(status.ready)),
        }
        for name, (what, value) in now.items():
            yield GaugeMetricFamily(name, what, value=value)
        yield CounterMetricFamily("sld_worker_restarts", "Workers that were replaced.", value=status.restarts)
        batches = CounterMetricFamily("sld_batches", "Batches, by how many jobs they had.", labels=("size",))
        for size, count in sorted(status.batches.items()):
            batches.add_metric((str(size),), count)
        yield batches
