"""What happens to one request, whichever face it came through: classified, decided, queued, asked, relayed.

An expert that fails before the first piece of its answer is replaced once by the policy's next choice. After it the
request ends with an error, so that an answer is either whole or known to be broken.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from erlab.gateway.decide import Classifier, Decider, Decision
from erlab.gateway.expert import Expert
from erlab.gateway.limits import Limits, Refused
from erlab.gateway.metrics import Metrics


@dataclass(slots=True)
class Routed:
    """A decision and its times: monotonic ns at which the request was read and decided, ns spent in between on
    classifying and, after it, waiting for a place at the expert."""

    decision: Decision
    received_ns: int
    routed_ns: int
    classify_ns: int
    queue_ns: int = 0


Ask = Callable[[Expert], AsyncIterator[bytes]]
Write = Callable[[bytes, Routed | None], Awaitable[None]]


class Dispatcher:
    """Answers requests by experts, within limits; `metrics` counts what becomes of them."""

    def __init__(self, classify: Classifier, decide: Decider, limits: Limits, metrics: Metrics):
        self.classify, self.decide, self.metrics = classify, decide, metrics
        self._limits = limits

    @property
    def experts(self) -> tuple[Expert, ...]:
        return self.decide.experts

    async def run(self, text: str, ask: Ask, write: Write) -> None:
        """Relay `ask(expert)` to `write(piece, routed)`, where `routed` comes with the first piece only.

        Raises Refused where the request fails, before or after pieces were written.
        """
        received = time.monotonic_ns()
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
                return await self.attempt(expert, ask, write, end, routed)
            except Refused as e:
                e.routed = routed
                if failed or not e.again:
                    raise
                failed, avoid = e, expert

    async def attempt(self, expert: Expert, ask: Ask, write: Write, end: float, routed: Routed | None = None) -> None:
        """Ask one expert and relay what it says; Refused where it has no place, fails, or isn't done by `end` (loop's
        time), and `again` only where nothing was written."""
        count, loop = self.metrics.of(expert), asyncio.get_running_loop()
        expert.outstanding += 1
        status, begun = "cancelled", False
        try:
            async with asyncio.timeout_at(end) as lease:
                expert.leases[lease] = math.inf
                waits = time.monotonic_ns()
                await expert.enter()
                begins = time.monotonic_ns()
                count.queue.observe((begins - waits) / 1e9)
                if routed:
                    routed.queue_ns = begins - waits
                try:
                    async with aclosing(ask(expert)) as pieces:
                        async for piece in pieces:
                            if piece:
                                expert.leases[lease] = math.inf  # the client may be slow to take it
                                if begun:
                                    await write(piece, None)
                                else:
                                    begun = True
                                    count.first.observe((time.monotonic_ns() - begins) / 1e9)
                                    await write(piece, routed)
                            expert.heard = expert.leases[lease] = loop.time()
                finally:
                    expert.leave()
            if not begun:
                silent = f"{expert.name} ended the stream without an answer"
                raise Refused(grpc.StatusCode.UNAVAILABLE, silent, again=True)
            count.upstream.observe((time.monotonic_ns() - begins) / 1e9)
            status = "ok"
        except (Refused, TimeoutError) as e:
            failure = e if isinstance(e, Refused) else self._late(expert, early=lease.when() < end)
            status = failure.code.name.lower()
            if failure.again:
                expert.suspect()
            failure.again &= not begun
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
