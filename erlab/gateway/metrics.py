"""What Prometheus reads: requests by expert and outcome, requests in flight, and where their time went.

    erlab_requests_total{expert,status}   erlab_in_flight{expert}   erlab_expert_up{expert}
    erlab_classify_seconds   erlab_queue_seconds{expert}
    erlab_first_seconds{expert}, erlab_upstream_seconds{expert}: from asking the expert to its first and last piece
"""

import asyncio
import os
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from erlab.gateway.expert import Expert

_FAST = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SLOW = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 600)


class _OfExpert:
    def __init__(self, metrics: "Metrics", name: str):
        self.queue = metrics.queue.labels(name)
        self.first, self.upstream = metrics.first.labels(name), metrics.upstream.labels(name)
        self._by_status = cache(lambda status: metrics.requests.labels(name, status))

    def ended(self, status: str) -> None:
        self._by_status(status).inc()


class Metrics:
    """The numbers of one gateway; several worker processes add theirs up where PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self, experts: tuple[Expert, ...] = ()):
        self._registry = CollectorRegistry()
        of, here = ["expert"], {"registry": self._registry}
        self.requests = Counter("erlab_requests", "Attempts that ended, by outcome.", [*of, "status"], **here)
        self.classify = Histogram("erlab_classify_seconds", "Time to classify a prompt.", buckets=_FAST, **here)
        self.queue = Histogram("erlab_queue_seconds", "Time waiting for a place.", of, buckets=_FAST, **here)
        self.first = Histogram("erlab_first_seconds", "From asking to the first piece.", of, buckets=_SLOW, **here)
        self.upstream = Histogram("erlab_upstream_seconds", "From asking to the end.", of, buckets=_SLOW, **here)
        flight = Gauge("erlab_in_flight", "Unfinished requests.", of, multiprocess_mode="livesum", **here)
        up = Gauge("erlab_expert_up", "1 where it answers.", of, multiprocess_mode="livemin", **here)
        self._gauges = [(expert, flight.labels(expert.name), up.labels(expert.name)) for expert in experts]
        self.of = cache(lambda expert: _OfExpert(self, expert.name))

    async def tend(self) -> None:
        """Keep the gauges fresh for the worker process that is asked for them, for ever."""
        while True:
            self._note()
            await asyncio.sleep(1)

    def _note(self) -> None:
        for expert, flight, up in self._gauges:
            flight.set(expert.outstanding)
            up.set(expert.up)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        self._note()
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            MultiProcessCollector(registry := CollectorRegistry())
        return generate_latest(registry)
