"""The paper's gateway: route each prompt to the expert of its cluster and stream the expert's answer back.

`Dispatcher.run` takes one request through these steps, which follow below in this order:

1. Classify the prompt: the router finds its cluster (`erlab.gateway.classify` batches concurrent prompts).
2. Decide: the policy chooses an expert for the cluster among the experts that are up (`Decider`).
3. Enter the expert's queue: wait for one of its places, in order of arrival (`ServedExpert.enter`).
4. Forward the request to the expert. The face that received the request supplies the function that does so (`Ask`).
5. Stream the answer back, piece by piece, as it arrives (`_Relay`).
6. Retry once, with the policy's next choice, if the expert fails before the first piece. After the first piece a
   failure ends the request with an error, so an answer is either whole or known to be broken.

The core names no transport. Faces (`erlab.gateway.wire`) turn protocols into calls of `Dispatcher`, and `RequestError`
into their own status codes. `erlab.gateway.health` decides which experts are up.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from erlab.errors import ErlabError
from erlab.gateway.classify import Classifier
from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.limits import Limits
from erlab.gateway.metrics import Metrics
from erlab.routing.compiled import Row
from erlab.routing.policies import POLICIES, Fleet


class Sink(Protocol):
    """Receiver of an expert's answer. Pieces are pushed into it as they arrive; none follows the end of the answer."""

    def piece(self, data: bytes) -> None:
        """Take a piece. An empty one says that the expert is at work: from now on its silence counts against it.

        An exception raised here ends the upstream's call.
        """

    @property
    def paused(self) -> bool:
        """Whether the client is behind, so that the expert should be held back."""

    async def resumed(self) -> None:
        """Wait until the client has caught up."""


class Reply(Sink, Protocol):
    """The client's end of an answer: a `Sink` that gets the request's routing with the first piece."""

    def piece(self, data: bytes, routed: "Routed | None") -> None: ...


class Probeable(Protocol):
    """A model on a server. Each protocol in `erlab.gateway.wire` adds the methods that its face calls."""

    async def probe(self) -> None:
        """Generate one token; raises RequestError if the model cannot."""


@dataclass(frozen=True)
class Decision:
    """Routing decision: expert, cluster, distance to its center, margin to the next one, and the policy's name."""

    expert: str
    cluster: int
    distance: float
    margin: float
    policy: str


@dataclass(slots=True)
class Routed:
    """A decision and its times: received and decided (monotonic ns), classifying and queueing (ns)."""

    decision: Decision
    received_ns: int
    routed_ns: int
    classify_ns: int
    queue_ns: int = 0


class ServedExpert:
    """One expert as the gateway sees it: its queue and its signs of life.

    Attributes:
        up: Whether the last probe succeeded (`erlab.gateway.health`).
        outstanding: Requests decided and unfinished, waiting or running.
        running: Requests in flight, at most `Limits.in_flight`.
        heard: Time of the last sign of life (event loop's clock, s).
        leases: Last sign of life of each request by its timeout; infinite while silence says nothing.
        suspected: Set when a request failed, so that the expert should be probed.
    """

    def __init__(self, name: str, upstream: Probeable, limits: Limits):
        self.name, self.upstream = name, upstream
        self.up, self.outstanding, self.running, self.heard = True, 0, 0, 0.0
        self.leases: dict[asyncio.Timeout, float] = {}
        self.suspected = asyncio.Event()
        self._limits, self._waiting = limits, deque()

    async def enter(self) -> None:
        """Take one of the expert's places, in order of arrival; raises RequestError if the queue is full too."""
        if self.running < self._limits.in_flight:
            if not self.running:
                self.heard = asyncio.get_running_loop().time()  # silence counts from the first request
            self.running += 1
            return
        if len(self._waiting) >= self._limits.queue:
            full = f"{self.name} has {self.running} requests in flight and {len(self._waiting)} waiting; try later"
            raise RequestError(Kind.RESOURCE_EXHAUSTED, full)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()  # the place was granted at the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Pass the place on to the request that has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was cancelled
                turn.set_result(None)
                return
        self.running -= 1


class Decider:
    """Policy over a gateway's experts.

    Args:
        experts: All experts; the other arguments refer to them by index.
        places: The expert that serves each cluster.
        policy: Name in `erlab.routing.policies.POLICIES`.
        generalist: The expert for outliers (policy "outlier").
        strong: The expert for difficult prompts (policy "strong_weak").
        threshold: Difficulty from which `strong` serves, 0 to 1; None for the policy's default.
    """

    def __init__(
        self,
        experts: Sequence[ServedExpert],
        places: Sequence[int],
        policy: str = "nearest",
        generalist: int | None = None,
        strong: int | None = None,
        threshold: float | None = None,
    ):
        self.experts, self._places = tuple(experts), tuple(places)
        self._generalist, self._strong = generalist, strong
        self._policy, self._choose = policy, POLICIES[policy]
        if threshold is not None:
            self._choose = partial(self._choose, threshold=threshold)
        self._tickets = 0

    def __call__(self, row: Row, avoid: ServedExpert | None = None) -> tuple[ServedExpert, Decision]:
        """Choose an expert that is up and not `avoid`; raises RequestError if there is none."""
        up = [expert.up and expert is not avoid for expert in self.experts]
        outstanding = [expert.outstanding for expert in self.experts]
        fleet = Fleet(self._places, outstanding, up, self._generalist, self._strong)
        try:
            chosen = self.experts[self._choose(row, fleet, self._tickets)]
        except ErlabError:
            none_up = f"None of the {len(set(self._places))} experts is up"
            raise RequestError(Kind.UNAVAILABLE, none_up) from None
        self._tickets += 1
        return chosen, Decision(chosen.name, row.cluster, row.distance, row.margin, self._policy)


Ask = Callable[[ServedExpert, Sink], Awaitable[None]]  # sends a request to an expert and its answer to a sink


class Dispatcher:
    """Answers requests with experts, within limits. Without `classify` only `attempt` works."""

    def __init__(self, classify: Classifier | None, decide: Decider, limits: Limits, metrics: Metrics):
        self.classify, self.decide, self.metrics = classify, decide, metrics
        self._limits = limits

    @property
    def experts(self) -> tuple[ServedExpert, ...]:
        return self.decide.experts

    async def run(self, text: str, ask: Ask, reply: Reply, received_ns: int | None = None) -> None:
        """Classify `text`, choose an expert, and relay its answer; retry once before the first piece.

        Args:
            text: The prompt.
            ask: Sends the request to the chosen expert.
            reply: Receives the answer.
            received_ns: When the request arrived (monotonic ns); None for now.

        Raises:
            RequestError: The request failed, before or after its first piece.
        """
        received = received_ns or time.monotonic_ns()
        end = asyncio.get_running_loop().time() + self._limits.seconds
        row, classify_ns = await self.classify(text)
        self.metrics.classify.observe(classify_ns / 1e9)
        failure = failed_expert = None
        while True:
            try:
                expert, decision = self.decide(row, avoid=failed_expert)
            except RequestError:
                if failure:  # the expert's own error says more than that no other is up
                    raise failure from None
                raise
            routed = Routed(decision, received, time.monotonic_ns(), classify_ns)
            try:
                return await self.attempt(expert, ask, reply, end, routed)
            except RequestError as error:
                error.routed = routed
                if failure or not error.retriable:
                    raise
                failure, failed_expert = error, expert

    async def attempt(
        self, expert: ServedExpert, ask: Ask, reply: Reply, end: float, routed: Routed | None = None
    ) -> None:
        """Ask one expert and relay its answer until the deadline `end` (event loop's clock, s).

        Raises RequestError, retriable only before the first piece, if the queue is full, the expert fails or is late.
        """
        count = self.metrics.of(expert)
        expert.outstanding += 1
        status, relay = "cancelled", None
        try:
            async with asyncio.timeout_at(end) as lease:
                expert.leases[lease] = math.inf
                queued_ns = time.monotonic_ns()
                await expert.enter()
                begun_ns = time.monotonic_ns()
                count.queue.observe((begun_ns - queued_ns) / 1e9)
                if routed:
                    routed.queue_ns = begun_ns - queued_ns
                relay = _Relay(expert, lease, reply, routed)
                try:
                    await ask(expert, relay)
                finally:
                    expert.leave()
                    if relay.first_ns:
                        count.first.observe((relay.first_ns - begun_ns) / 1e9)
            if not relay.first_ns:
                silent = f"{expert.name} ended the stream without an answer"
                raise RequestError(Kind.UNAVAILABLE, silent, retriable=True)
            count.upstream.observe((time.monotonic_ns() - begun_ns) / 1e9)
            status = "ok"
        except (RequestError, TimeoutError) as error:
            failure = error if isinstance(error, RequestError) else self._late(expert, lost=lease.when() < end)
            status = failure.kind
            if failure.retriable:
                expert.suspected.set()
            failure.retriable &= not (relay and relay.first_ns)
            raise failure from None
        finally:
            expert.leases.pop(lease, None)
            expert.outstanding -= 1
            count.ended(status)

    def _late(self, expert: ServedExpert, lost: bool) -> RequestError:
        """Error of a request whose time ended: the expert lost it, or it passed its deadline."""
        if lost:
            return RequestError(Kind.UNAVAILABLE, f"{expert.name} stopped answering", retriable=True)
        expert.suspected.set()
        return RequestError(Kind.DEADLINE_EXCEEDED, f"{expert.name} did not end within {self._limits.seconds:g} s")


class _Relay:
    """Passes one attempt's pieces on and records them as signs of life; `first_ns`: time of the first, else 0."""

    def __init__(self, expert: ServedExpert, lease: asyncio.Timeout, reply: Reply, routed: Routed | None):
        self._expert, self._lease, self._reply, self._routed = expert, lease, reply, routed
        self._time = asyncio.get_running_loop().time
        self._held = False  # the client is slow, not the expert
        self.first_ns = 0

    def piece(self, data: bytes) -> None:
        now = self._time()
        if not self._held:  # pieces already on their way must not restart the clock of a held expert
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
