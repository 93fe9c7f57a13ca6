"""Batched classification of concurrent prompts.

Prompts that arrive in the same turn of the event loop are classified as one batch, or as several where they are many,
so that the first are forwarded while the last are classified. No prompt waits for more to arrive. A router that needs
more than a millisecond per prompt runs in a thread; prompts that arrive meanwhile form its next batch.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from erlab.routing import CompiledRouter
from erlab.routing.compiled import Row

_SLOW_NS = 1_000_000  # a router that needs more for a prompt would hold up the event loop
_TRIES = 20  # measurements of a router's speed, of which the fastest counts
_BATCH = 32  # prompts per batch: the time grows linearly with more, and the first would wait for the last
_LONG = 2_000  # characters, about a millisecond; a longer prompt goes to the thread whatever the router
_SAMPLE = "How do I salt the pasta water, and what does the landlord's court say about it? " * 5


class Classifier:
    """Batching front of a router: `await classify(text)` returns (Row, ns spent). Use it on one event loop only."""

    def __init__(self, router: CompiledRouter):
        self._router = router
        self._waiting: list[tuple[str, asyncio.Future]] = []
        self._scheduled = False
        self._thread = ThreadPoolExecutor(1, "classify")
        # The fastest of many: a busy machine slows any router, often several times in a row.
        self.slow = all(self._sample_ns() > _SLOW_NS for _ in range(_TRIES))

    def _sample_ns(self) -> int:
        start = time.perf_counter_ns()
        self._router.route([_SAMPLE])
        return time.perf_counter_ns() - start

    async def __call__(self, text: str) -> tuple[Row, int]:
        start, loop = time.monotonic_ns(), asyncio.get_running_loop()
        result = loop.create_future()
        self._waiting.append((text, result))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start_batch)
        return await result, time.monotonic_ns() - start

    def _start_batch(self) -> None:
        batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
        texts = [text for text, _ in batch]
        if not (self.slow or any(len(text) > _LONG for text in texts)):
            self._end_batch(batch, self._route(texts))
            return
        routing = asyncio.get_running_loop().run_in_executor(self._thread, self._route, texts)
        routing.add_done_callback(lambda rows: self._end_batch(batch, rows.result()))

    def _end_batch(self, batch: list[tuple[str, asyncio.Future]], rows: list[Row] | Exception) -> None:
        for i, (_, result) in enumerate(batch):
            if result.done():
                continue  # its client has disconnected
            if isinstance(rows, Exception):
                result.set_exception(rows)
            else:
                result.set_result(rows[i])
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._start_batch)

    def _route(self, texts: list[str]) -> list[Row] | Exception:
        try:
            routing = self._router.route(texts)
            return [routing.row(i) for i in range(len(texts))]
        except Exception as error:  # each of the batch's requests fails with it
            return error
