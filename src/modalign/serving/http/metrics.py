"""Prometheus metrics, in a separate registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modalign.serving.requests import EngineState

REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

GAUGES = {
    "running": "Requests in the batch",
    "waiting": "Requests in the queue",
    "max_batch": "Rows of the batch",
    "prefix_pages": "Pages in the prefix cache",
    "prefix_bytes": "Bytes of the prefix cache",
    "threads": "CPU threads of the model's steps",
}
COUNTERS = {
    "steps": "Decode steps",
    "prompt_tokens": "Prompt tokens read",
    "new_tokens": "Tokens made",
    "cached_tokens": "Prompt tokens taken from the prefix cache",
    "pieces": "Pieces of prompts read between steps",
    "prefix_hits": "Prompts whose beginning was in the prefix cache",
    "prefix_misses": "Prompts of which nothing was in the prefix cache",
    "prefix_evicted": "Pages that the prefix cache dropped for others",
    "media_hits": "Media whose encoding was cached",
    "media_misses": "Media that were encoded",
}


class Metrics:
    """The server's metrics.

    Args:
        state: returns the engine's current state.
    """

    def __init__(self, state: Callable[[], EngineState]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_EngineFigures(state))
        self.requests = Counter(
            "modalign_requests", "HTTP requests", ("route", "status"), registry=self.registry
        )
        self.request = Histogram(
            "modalign_request_seconds",
            "From a request's head to the end of its answer",
            ("route",),
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "modalign_time_to_first_token_seconds",
            "From submission to the engine to the first token, including waiting",
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self.token = Histogram(
            "modalign_time_per_token_seconds",
            "Mean over an answer, without its first token",
            buckets=TOKEN_SECONDS,
            registry=self.registry,
        )

    def done(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.request.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineFigures(Collector):
    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        for name, words in GAUGES.items():
            yield GaugeMetricFamily(f"modalign_{name}", words, value=getattr(state, name))
        for name, words in COUNTERS.items():
            yield CounterMetricFamily(f"modalign_{name}", words, value=getattr(state, name))
