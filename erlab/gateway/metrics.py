"""Prometheus metrics of a gateway: requests by expert and outcome, requests in flight, and times.

    erlab_requests_total{expert,status}   erlab_in_flight{expert}   erlab_expert_up{expert}
    erlab_classify_seconds   erlab_queue_seconds{expert}
    erlab_first_seconds{expert}, erlab_upstream_seconds{expert}: from forwarding to the first and to the last piece
"""

import asyncio
import os
from collections.abc import Sequence
from functools import cache
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # variable with the folder that workers share
_FAST = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SLOW = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 600)


class Gauged(Protocol):
    """An expert whose state the gauges show."""

    name: str
    outstanding: int
    up: bool


class _ExpertMetrics:
    def __init__(self, metrics: "Metrics", name: str):
        self.queue = metrics.queue.labels(name)
        self.first, self.upstream = metrics.first.labels(name), metrics.upstream.labels(name)
        self._by_status = cache(lambda status: metrics.requests.labels(name, status))

    def ended(self, status: str) -> None:
        self._by_status(status).inc()


class Metrics:
    """Metrics of one gateway process; workers share theirs in the folder PROMETHEUS_MULTIPROC_DIR if that is set."""

    experts: Sequence[Gauged] = ()  # those whose state the gauges show

    def __init__(self):
        self._registry = CollectorRegistry()
        of, here = ["expert"], {"registry": self._registry}
        self.requests = Counter("erlab_requests", "Attempts that ended, by outcome.", [*of, "status"], **here)
        self.classify = Histogram("erlab_classify_seconds", "Time to classify a prompt.", buckets=_FAST, **here)
        self.queue = Histogram("erlab_queue_seconds", "Time waiting for a place.", of, buckets=_FAST, **here)
        self.first = Histogram("erlab_first_seconds", "From forwarding to the first piece.", of, buckets=_SLOW, **here)
        self.upstream = Histogram("erlab_upstream_seconds", "From forwarding to the end.", of, buckets=_SLOW, **here)
        self._flight = Gauge("erlab_in_flight", "Unfinished requests.", of, multiprocess_mode="livesum", **here)
        self._up = Gauge("erlab_expert_up", "1 if the expert is up.", of, multiprocess_mode="livemin", **here)
        self._shown: set[str] = set()
        self._of = cache(lambda name: _ExpertMetrics(self, name))

    def of(self, expert: Gauged) -> _ExpertMetrics:
        """Metrics of an expert, which go on after a reload if it keeps its name."""
        return self._of(expert.name)

    async def refresh(self) -> None:
        """Update the gauges every second, for the worker process that serves /metrics, until cancelled."""
        while True:
            self._update_gauges()
            await asyncio.sleep(1)

    def _update_gauges(self) -> None:
        for expert in self.experts:
            self._flight.labels(expert.name).set(expert.outstanding)
            self._up.labels(expert.name).set(expert.up)
        names = {expert.name for expert in self.experts}
        for name in self._shown - names:  # removed by a reload
            if _FOLDER in os.environ:  # its files cannot lose a label
                self._flight.labels(name).set(0)
            else:
                self._flight.remove(name)
                self._up.remove(name)
        self._shown = names

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        self._update_gauges()
        registry = self._registry
        if _FOLDER in os.environ:
            MultiProcessCollector(registry := CollectorRegistry())
        return generate_latest(registry)
