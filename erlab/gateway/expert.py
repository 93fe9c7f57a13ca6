"""One expert as the gateway sees it: what it has to do, whether it answers, and a probe when there is doubt.

Only a probe, a real inference of one token, takes an expert out or back in. It is sent when a request failed, or when
the expert has requests and has been silent for `stall_seconds`; a healthy expert is never bothered.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

import grpc
from tritonclient.grpc import service_pb2

from erlab.gateway.limits import Limits, Refused

Headers = list[tuple[str, str | bytes]] | None
_TICK_SECONDS = 0.25


class Upstream(Protocol):
    """A model on a server, asked in either of the gateway's two protocols. All raise Refused where it fails."""

    def kserve(self, request: service_pb2.ModelInferRequest, data: bytes, headers: Headers) -> AsyncIterator[bytes]:
        """The ModelStreamInferResponse messages that answer `request`, whose bytes are `data`."""

    def infer(self, request: service_pb2.ModelInferRequest, data: bytes, headers: Headers) -> AsyncIterator[bytes]:
        """The one ModelInferResponse message that answers `request`."""

    def openai(self, kind: str, body: dict) -> AsyncIterator[bytes]:
        """The answer to `body`, whose `kind` is completions or chat/completions: pieces of an event stream where the
        body asks for one, else one JSON document."""

    async def probe(self) -> None:
        """Ask for one token."""


class Expert:
    """An expert's place in the gateway. `outstanding` counts its decided, unfinished requests, waiting or running."""

    def __init__(self, name: str, upstream: Upstream, limits: Limits):
        self.name, self.upstream = name, upstream
        self.up, self.outstanding, self.running, self.heard = True, 0, 0, 0.0
        self.leases: set[asyncio.Timeout] = set()
        self._limits, self._waiting = limits, deque()
        self._doubt = asyncio.Event()

    async def enter(self) -> None:
        """Take one of the expert's places, in order of arrival; Refused where the queue is full too."""
        if self.running < self._limits.in_flight:
            if not self.running:
                self.heard = asyncio.get_running_loop().time()  # silence counts from the first request
            self.running += 1
            return
        if len(self._waiting) >= self._limits.queue:
            full = f"{self.name} has {self.running} requests in flight and {len(self._waiting)} waiting; try later"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, full)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()  # the place came in the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Give the place back, to the one that has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else it is cancelled, and its request on its way out
                turn.set_result(None)
                return
        self.running -= 1

    def suspect(self) -> None:
        self._doubt.set()

    async def tend(self) -> None:
        """Probe the expert whenever there is doubt, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._doubt.wait()
            except TimeoutError:
                silent = self.running and loop.time() - self.heard > self._limits.stall_seconds
                if self.up and not silent:
                    continue
            self._doubt.clear()
            asked = loop.time()
            try:
                async with asyncio.timeout(self._limits.stall_seconds):
                    await self.upstream.probe()
                self.up, self.heard = True, loop.time()
            except (Refused, TimeoutError):
                if self.heard <= asked:  # it answers others: busy, not down
                    self._fall()
            await asyncio.sleep(_TICK_SECONDS)

    def _fall(self) -> None:
        """Take the expert out; whoever waits for it hears of that now."""
        self.up = False
        now = asyncio.get_running_loop().time()
        for lease in self.leases:
            if not lease.expired():
                lease.reschedule(now)
        self.leases.clear()
