"""What happens to one request, whichever face it came through: classified, decided, queued, asked, relayed.

An expert that fails before the first piece of its answer is replaced once by the policy's next choice. After it the
request ends with an error, so that an answer is either whole or known to be broken.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from erlab.gateway.decide import Classifier, Decider, Decision
from erlab.gateway.expert import Expert, Sink
from erlab.gateway.limits import Limits, Refused
from erlab.gateway.metrics import Metrics


@dataclass(slots=True)
class Routed:
    """A decision and its times: monotonic ns at which the request was received and decided, ns spent in between on
    classifying and, after it, waiting for a place at the expert."""

    decision: Decision
    received_ns: int
    routed_ns: int
    classify_ns: int
    queue_ns: int = 0


class Reply(Protocol):
    """The client's end of an answer: a Sink, whose first piece comes with how its request was routed."""

    def piece(self, data: bytes, routed: Routed | None) -> None: ...

    @property
    def paused(self) -> bool: ...

    async def resumed(self) -> None: ...


Ask = Callable[[Expert, Sink], Awaitable[None]]


class Dispatcher:
    """Answers requests by experts, within limits; `metrics` counts what becomes of them. Without `classify` it can only
    `attempt`."""

    def __init__(self, classify: Classifier | None, decide: Decider, limits: Limits, metrics: Metrics):
        self.classify, self.decide, self.metrics = classify, decide, metrics
        self._limits = limits

    @property
    def experts(self) -> tuple[Expert, ...]:
        return self.decide.experts

    async def run(self, text: str, ask: Ask, reply: Reply, received_ns: int | None = None) -> None:
        """Have `ask(expert, sink)` answer to `reply`; Refused where the request fails, before or after its first
        piece. `received_ns`: when the request came (monotonic); now if None."""
        received = received_ns or time.monotonic_ns()
        end = asyncio.get_running_loop().time() + self._limits.seconds
        row, classify_ns = await self.classify(text)
        self.metrics.classify.observe(classify_ns / 1e9)
        failed = avoid = None
        while True:
            try:
                expert, decision = self.decide(row, avoid)
            except Refused:
                if failed:  # the words of the expert say more than that there is no other
                    raise failed from None
                raise
            routed = Routed(decision, received, time.monotonic_ns(), classify_ns)
            try:
                return await self.attempt(expert, ask, reply, end, routed)
            except Refused as e:
                e.routed = routed
                if failed or not e.again:
                    raise
                failed, avoid = e, expert

    async def attempt(self, expert: Expert, ask: Ask, reply: Reply, end: float, routed: Routed | None = None) -> None:
        """Ask one expert and relay what it says; Refused where it has no place, fails, or isn't done by `end` (loop's
        time), and `again` only where nothing was said."""
        count = self.metrics.of(expert)
        expert.outstanding += 1
        status, relay = "cancelled", None
        try:
            async with asyncio.timeout_at(end) as lease:
                expert.leases[lease] = math.inf
                waits = time.monotonic_ns()
                await expert.enter()
                begins = time.monotonic_ns()
                count.queue.observe((begins - waits) / 1e9)
                if routed:
                    routed.queue_ns = begins - waits
                relay = _Relay(expert, lease, reply, routed)
                try:
                    await ask(expert, relay)
                finally:
                    expert.leave()
                    if relay.first_ns:
                        count.first.observe((relay.first_ns - begins) / 1e9)
            if not relay.first_ns:
                silent = f"{expert.name} ended the stream without an answer"
                raise Refused(grpc.StatusCode.UNAVAILABLE, silent, again=True)
            count.upstream.observe((time.monotonic_ns() - begins) / 1e9)
            status = "ok"
        except (Refused, TimeoutError) as e:
            failure = e if isinstance(e, Refused) else self._late(expert, early=lease.when() < end)
            status = failure.code.name.lower()
            if failure.again:
                expert.suspect()
            failure.again &= not (relay and relay.first_ns)
            raise failure from None
        finally:
            expert.leases.pop(lease, None)
            expert.outstanding -= 1
            count.ended(status)

    def _late(self, expert: Expert, early: bool) -> Refused:
        """Why a request's time ended: the expert will not answer it, which ends it early, or it took too long."""
        if early:
            return Refused(grpc.StatusCode.UNAVAILABLE, f"{expert.name} stopped answering", again=True)
        expert.suspect()
        late = f"{expert.name} did not end within {self._limits.seconds:g} s"
        return Refused(grpc.StatusCode.DEADLINE_EXCEEDED, late)


class _Relay:
    """Hands one attempt's pieces on and takes them for signs of life; `first_ns`: when the first came, else 0."""

    def __init__(self, expert: Expert, lease: asyncio.Timeout, reply: Reply, routed: Routed | None):
        self._expert, self._lease, self._reply, self._routed = expert, lease, reply, routed
        self._time = asyncio.get_running_loop().time
        self._held = False  # the client is slow, not the expert
        self.first_ns = 0

    def piece(self, data: bytes) -> None:
        now = self._time()
        if not self._held:  # what was on its way then starts no silence
            self._expert.leases[self._lease] = now
        if not data:
            return
        self._expert.heard = now
        if self.first_ns:
            self._reply.piece(data, None)
        else:
            self.first_ns = time.monotonic_ns()
            self._reply.piece(data, self._routed)

    @property
    def paused(self) -> bool:
        return self._reply.paused

    async def resumed(self) -> None:
        leases, self._held = self._expert.leases, True
        leases[self._lease] = math.inf
        await self._reply.resumed()
        self._held = False
        self._expert.heard = leases[self._lease] = self._time()
