"""One expert as the gateway sees it: what it has to do, whether it answers, and a probe when there is doubt.

Only a probe, a real inference of one token, takes an expert out or back in. It is sent when a request failed, or when
a request has waited `stall_seconds` for a sign of life; an expert that answers in time is never bothered. Triton leaves
the streams of an expert that died hanging, even when it has loaded the expert again: so a stream that was silent before
a probe was sent, and still is when the probe has been answered, is lost.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import grpc
from tritonclient.grpc import service_pb2

from erlab.gateway.http2.headers import Metadata
from erlab.gateway.limits import Limits, Refused

Headers = Metadata  # a client's own, as they are on the wire
NO_HEADERS: Headers = ()
_TICK_SECONDS = 0.25


class Sink(Protocol):
    """Where an expert's answer goes, piece by piece, at once: no task is woken for a piece. None comes after the
    upstream's call has ended."""

    def piece(self, data: bytes) -> None:
        """Take a piece. An empty one is none: it says that the expert is at work, and that from now on its silence
        counts. What this raises, the upstream's call raises: the answer cannot go on."""

    @property
    def paused(self) -> bool:
        """Whether the client has yet to take what it was sent, and the expert should be held back."""

    async def resumed(self) -> None:
        """Return when the client has taken enough."""


class Onward:
    """A Sink whose pieces go on to another, as it likes."""

    def __init__(self, sink: Sink):
        self._sink = sink

    @property
    def paused(self) -> bool:
        return self._sink.paused

    async def resumed(self) -> None:
        await self._sink.resumed()


class Unpaused:
    """A Sink that takes whatever comes."""

    paused = False

    async def resumed(self) -> None:
        return


class Upstream(Protocol):
    """A model on a server, asked in either of the gateway's two protocols. All raise Refused where it fails, and return
    when the answer has ended whole."""

    async def kserve(self, request: service_pb2.ModelInferRequest, data: bytes, headers: Headers, sink: Sink) -> None:
        """Answer `request`, whose bytes are `data`, with ModelStreamInferResponse messages, each a piece."""

    async def infer(self, request: service_pb2.ModelInferRequest, data: bytes, headers: Headers) -> bytes:
        """The one ModelInferResponse message that answers `request`."""

    async def openai(self, kind: str, body: dict, sink: Sink) -> None:
        """Answer `body`, whose `kind` is completions or chat/completions, with pieces of an event stream where the body
        asks for one, else with one JSON document."""

    async def probe(self) -> None:
        """Ask for one token."""


class Expert:
    """An expert's place in the gateway. `outstanding` counts its decided, unfinished requests, waiting or running;
    `leases` holds the times (the loop's) of their last signs of life, infinite while silence says nothing."""

    def __init__(self, name: str, upstream: Upstream, limits: Limits):
        self.name, self.upstream = name, upstream
        self.up, self.outstanding, self.running, self.heard = True, 0, 0, 0.0
        self.leases: dict[asyncio.Timeout, float] = {}
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
        loop, stall = asyncio.get_running_loop(), self._limits.stall_seconds
        while True:
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._doubt.wait()
            except TimeoutError:
                silent = [self.heard] if self.running else []
                if self.up and loop.time() - min([*silent, *self.leases.values()], default=math.inf) <= stall:
                    continue
            self._doubt.clear()
            asked = loop.time()
            try:
                async with asyncio.timeout(stall):
                    await self.upstream.probe()
                self.up, self.heard = True, loop.time()
                # What the probe has overtaken by chance comes in about as long.
                await asyncio.sleep(max(_TICK_SECONDS, self.heard - asked))
                self._end([lease for lease, heard in self.leases.items() if heard < asked - stall])
            except (Refused, TimeoutError):
                if self.heard <= asked:  # else it answers others: busy, not down
                    self.up = False
                    self._end(list(self.leases))
                await asyncio.sleep(_TICK_SECONDS)

    def _end(self, leases: Iterable[asyncio.Timeout]) -> None:
        """End these requests: the expert will not answer them."""
        now = asyncio.get_running_loop().time()
        for lease in leases:
            del self.leases[lease]
            if not lease.expired():
                lease.reschedule(now)
