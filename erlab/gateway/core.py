"""The paper's gateway: route each prompt to the expert of its cluster and stream the expert's answer back.

`Dispatcher.run` takes one request through these steps, which follow below in this order:

1. Classify the prompt: the router finds its cluster (`erlab.gateway.classify` batches concurrent prompts).
2. Decide: the policy chooses an expert for the cluster among the experts that are up (`Decider`).
3. Enter the expert's queue: wait for one of its slots, in order of arrival (`ServedExpert.enter`).
4. Forward the request to the expert. The face that received the request supplies the function that does so (`Forward`).
5. Stream the answer back, piece by piece, as it arrives (`_Relay`).
6. Retry once, with the policy's next choice, if the expert fails before the first piece. After the first piece a
   failure ends the request with an error, so an answer is either whole or known to be broken.

The core names no transport. Faces (`erlab.gateway.wire`) turn protocols into calls of `Dispatcher`, and `RequestError`
into their own status codes. `erlab.gateway.health` decides which experts are up.
"""

import asyncio
import math
import time
from bisect import bisect
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Protocol

from erlab.errors import ErlabError
from erlab.gateway.accesslog import AccessLog
from erlab.gateway.classify import Classifier
from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.limits import Limits
from erlab.gateway.metrics import Metrics
from erlab.routing.compiled import Row
from erlab.routing.policies import POLICIES, SPECIAL_EXPERTS, FleetState

ROUTER = "router"  # the model that stands for all experts
# Draws at its multiples, modulo 1, are evenly spread, so weights hold even for few requests.
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_REASON = 300  # characters of the reasons why no expert is up


class Sink(Protocol):
    """Receiver of an expert's answer. Pieces are pushed into it as they arrive; none follows the end of the answer."""

    def piece(self, data: bytes) -> None:
        """Take a piece. An empty one says that the expert is at work: from then on, silence may get it probed.

        An exception raised here ends the upstream's call.
        """

    @property
    def paused(self) -> bool:
        """Whether the client is behind, so that the expert should be held back."""

    async def resumed(self) -> None:
        """Wait until the client has caught up."""


class Reply(Sink, Protocol):
    """The client's end of an answer: a `Sink` that gets the request's routing with the first piece.

    Attributes:
        client: Protocol and address of the client.
    """

    client: str

    def piece(self, data: bytes, routed: "Routed | None") -> None: ...


class Probeable(Protocol):
    """A model on a server. Each protocol in `erlab.gateway.wire` adds the methods that its face calls."""

    async def probe(self) -> None:
        """Generate one token; raises RequestError if the model cannot."""


@dataclass(frozen=True)
class Decision:
    """Routing decision.

    Attributes:
        expert: Name of the expert.
        cluster: Cluster of the prompt.
        distance: Distance from the prompt to the cluster's center.
        margin: How much further the next center is.
        policy: Name of the policy.
    """

    expert: str
    cluster: int
    distance: float
    margin: float
    policy: str


@dataclass(slots=True)
class Routed:
    """A decision and its times.

    Attributes:
        decision: The decision.
        received_ns: When the request arrived (monotonic ns).
        routed_ns: When the expert was chosen (monotonic ns).
        classify_ns: Time to classify the prompt (ns).
        queue_ns: Time in the expert's queue (ns).
    """

    decision: Decision
    received_ns: int
    routed_ns: int
    classify_ns: int
    queue_ns: int = 0


class ServedExpert:
    """One expert as the gateway sees it: its queue and its signs of life.

    Attributes:
        up: Whether the last probe succeeded (`erlab.gateway.health`).
        down_reason: Error of the last probe, if it failed.
        outstanding: Requests decided and unfinished, waiting or running.
        running: Requests in flight, at most `Limits.in_flight`.
        heard: Time of the last sign of life (event loop's clock, s).
        leases: Time of the last sign of life of each running request, by its timeout; infinite while the request is
            queued or its client is slow. `erlab.gateway.health` ends a lost request by moving its timeout to now.
        suspected: Set when a request failed, so that the expert should be probed.
    """

    def __init__(self, name: str, upstream: Probeable, limits: Limits):
        self.name, self.upstream = name, upstream
        self.up, self.outstanding, self.running, self.heard = True, 0, 0, 0.0
        self.down_reason = ""
        self.leases: dict[asyncio.Timeout, float] = {}
        self.suspected = asyncio.Event()
        self._limits, self._waiting = limits, deque()

    async def enter(self) -> None:
        """Take one of the expert's slots, in order of arrival; raises RequestError if the queue is full too."""
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
                self.leave()  # the slot was granted at the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Pass the slot on to the request that has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was cancelled
                turn.set_result(None)
                return
        self.running -= 1


Forward = Callable[[ServedExpert, Sink], Awaitable[None]]  # sends a request to an expert, and its answer to a sink


class Decider:
    """Policy over a gateway's experts.

    Where several experts serve a cluster, each request prefers one of those that are up, drawn by their weights, and
    the policy sees all of them, the preferred one first.

    Args:
        experts: All experts; the other arguments refer to them by index.
        places: The experts that serve each cluster.
        policy: Name in `erlab.routing.policies.POLICIES`.
        special: The generalist or strong expert that the policy needs.
        numbers: Parameters of the policy, such as `threshold`.
        weights: Weight of each expert; None for equal ones.
    """

    def __init__(
        self,
        experts: Sequence[ServedExpert],
        places: Sequence[Sequence[int]],
        policy: str = "nearest",
        special: int | None = None,
        numbers: Mapping[str, float] | None = None,
        weights: Sequence[float] | None = None,
    ):
        self.experts = tuple(experts)
        self._policy, self._choose = policy, partial(POLICIES[policy], **numbers or {})
        self._special = {SPECIAL_EXPERTS[policy]: special} if special is not None else {}
        self._weights = tuple(weights or (1.0,) * len(self.experts))
        # Entries 0 to k-1: first expert of each of the k clusters; entries behind them: the clusters' other experts.
        # _shared: entries of each cluster that has several.
        self._expert_of, self._shared = [serving[0] for serving in places], {}
        for c, serving in enumerate(places):
            if len(serving) > 1:
                more = range(len(self._expert_of), len(self._expert_of) + len(serving) - 1)
                self._shared[c] = (c, *more)
                self._expert_of += serving[1:]
        self._tickets = 0

    def __call__(self, row: Row, avoid: ServedExpert | None = None) -> tuple[ServedExpert, Decision]:
        """Choose an expert that is up and not `avoid`; raises RequestError if there is none."""
        up = [expert.up and expert is not avoid for expert in self.experts]
        outstanding = [expert.outstanding for expert in self.experts]
        fleet = FleetState(self._expert_of, outstanding, up, **self._special)
        over_entries = row._replace(order=self._order(row, up)) if self._shared else row
        try:
            chosen = self.experts[self._choose(over_entries, fleet, self._tickets)]
        except ErlabError:
            raise RequestError(Kind.UNAVAILABLE, self._none_up()) from None
        self._tickets += 1
        return chosen, Decision(chosen.name, row.cluster, row.distance, row.margin, self._policy)

    def _order(self, row: Row, up: Sequence[bool]) -> tuple[int, ...]:
        """Order the entries of `_expert_of`: by cluster, and within a cluster the drawn expert first."""
        draw, order = self._tickets * _GOLDEN_RATIO % 1, []
        for cluster in row.order:
            entries = self._shared.get(cluster, (cluster,))
            ready = [entry for entry in entries if up[self._expert_of[entry]]]
            if len(ready) > 1:
                weights = [self._weights[self._expert_of[entry]] for entry in ready]
                drawn = bisect(list(accumulate(weights)), draw * sum(weights), hi=len(ready) - 1)
                ready.insert(0, ready.pop(drawn))
            order += ready or entries[:1]  # all down: keep one, so that the cluster stays in the order
        return tuple(order)

    def _none_up(self) -> str:
        serving = dict.fromkeys(self.experts[i] for i in self._expert_of)
        reasons = "; ".join(f"{e.name}: {e.down_reason}" for e in serving if e.down_reason)[:_REASON]
        return f"None of the {len(serving)} experts is up" + (f" ({reasons})" if reasons else "")


class Plan(NamedTuple):
    """How requests are routed: by a router and a policy. Without a router `classify` is None: clients name experts."""

    classify: Classifier | None
    decide: Decider


class Dispatcher:
    """Answers requests with experts, within limits. `use` exchanges its plan; requests in flight keep their experts."""

    def __init__(self, plan: Plan, limits: Limits, metrics: Metrics, log: AccessLog | None = None):
        self.metrics = metrics
        self._limits, self._log = limits, log
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Route all further requests by this plan."""
        self._plan = plan
        self.named = {expert.name: expert for expert in plan.decide.experts}
        self.metrics.experts = plan.decide.experts

    @property
    def experts(self) -> tuple[ServedExpert, ...]:
        return self._plan.decide.experts

    @property
    def routes(self) -> bool:
        """Whether there is a router, beside the experts by name."""
        return self._plan.classify is not None

    async def decision(self, text: str) -> tuple[Decision, int]:
        """Return the decision for a prompt, which is sent nowhere, and the time to classify it (ns)."""
        plan, row, classify_ns = await self._classified(text)
        return plan.decide(row)[1], classify_ns

    async def _classified(self, text: str) -> tuple[Plan, Row, int]:
        while True:
            plan = self._plan
            row, classify_ns = await plan.classify(text)
            if plan is self._plan:  # else its experts may be gone
                return plan, row, classify_ns

    async def run(self, text: str, forward: Forward, reply: Reply, received_ns: int | None = None) -> None:
        """Classify `text`, choose an expert, and relay its answer; retry once before the first piece.

        Args:
            text: The prompt.
            forward: Sends the request to the chosen expert.
            reply: Receives the answer.
            received_ns: When the request arrived (monotonic ns); None for now.

        Raises:
            RequestError: The request failed, before or after its first piece.
        """
        received = received_ns or time.monotonic_ns()
        with self._entry(ROUTER, text, reply, received) as entry:
            await self._run(text, forward, reply, received, entry)

    async def ask(
        self, expert: ServedExpert, text: str, forward: Forward, reply: Reply, received_ns: int | None = None
    ) -> None:
        """Relay the answer of an expert that the client named; parameters and errors as of `run`."""
        received = received_ns or time.monotonic_ns()
        end = asyncio.get_running_loop().time() + self._limits.seconds
        with self._entry(expert.name, text, reply, received) as entry:
            entry["expert"] = expert.name
            await self.attempt(expert, forward, reply, end, entry=entry)

    def _entry(self, model: str, text: str, reply: Reply, received_ns: int) -> AbstractContextManager[dict]:
        """Entry of the access log; without a log, it is written nowhere."""
        return self._log.request(model, text, reply.client, received_ns) if self._log else nullcontext({})

    async def _run(self, text: str, forward: Forward, reply: Reply, received: int, entry: dict) -> None:
        end = asyncio.get_running_loop().time() + self._limits.seconds
        failure = failed_expert = plan = None
        while True:
            if plan is not self._plan:  # first round, or reloaded since
                plan, row, classify_ns = await self._classified(text)
                self.metrics.classify.observe(classify_ns / 1e9)
            try:
                expert, decision = plan.decide(row, avoid=failed_expert)
            except RequestError:
                if failure:  # the expert's own error says more than that no other is up
                    raise failure from None
                raise
            routed = Routed(decision, received, time.monotonic_ns(), classify_ns)
            try:
                return await self.attempt(expert, forward, reply, end, routed, entry)
            except RequestError as error:
                error.routed = routed
                if failure or not error.retriable:
                    raise
                failure, failed_expert = error, expert

    async def attempt(
        self,
        expert: ServedExpert,
        forward: Forward,
        reply: Reply,
        end: float,
        routed: Routed | None = None,
        entry: dict | None = None,
    ) -> None:
        """Ask one expert and relay its answer until the deadline `end` (event loop's clock, s); fill a log's `entry`.

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
                    await forward(expert, relay)
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
            lost = lease.when() < end  # `health` moved the timeout forward
            failure = error if isinstance(error, RequestError) else self._late(expert, lost)
            status = failure.kind
            if failure.retriable:
                expert.suspected.set()
            if relay and relay.first_ns:
                failure.retriable = False
            raise failure from None
        finally:
            if entry and routed:
                entry |= vars(routed.decision)
                entry |= {"classify_ms": routed.classify_ns / 1e6, "queue_ms": routed.queue_ns / 1e6}
            if entry and relay and relay.first_ns:
                entry["first_ns"] = relay.first_ns
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
