"""The gateway's decision: a prompt's cluster from the router, its expert from the policy.

Prompts that arrive in the same turn of the event loop are classified as one batch, or a few where they are many, so
that the first are on their way while the last are classified; nothing waits for more to come. A router that needs more
than a millisecond for a prompt works in a thread, and what arrives meanwhile is its next batch.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import grpc

from erlab.errors import ErlabError
from erlab.gateway.expert import Expert
from erlab.gateway.limits import Refused
from erlab.routing import CompiledRouter
from erlab.routing.compiled import Row
from erlab.routing.policies import POLICIES, Fleet

_SLOW_NS, _TRIES = 1_000_000, 20
_TOGETHER = 32  # prompts of a batch: more cost as much each, and the first of them would wait for the last
_LONG = 2_000  # characters, about a millisecond; a longer prompt goes to the thread whatever the router
_SAMPLE = "How do I salt the pasta water, and what does the landlord's court say about it? " * 5


@dataclass(frozen=True)
class Decision:
    """Where a prompt goes: the expert, the cluster, its distance and margin, the policy that chose."""

    expert: str
    cluster: int
    distance: float
    margin: float
    policy: str


class Classifier:
    """`await classify(text)` is the prompt's Row and the ns that took; call it on one event loop only."""

    def __init__(self, router: CompiledRouter):
        self._router = router
        self._waiting: list[tuple[str, asyncio.Future]] = []
        self._scheduled = False
        self._thread = ThreadPoolExecutor(1, "classify")
        # At best, out of many: a busy machine slows any router, often several times in a row.
        self.slow = all(self._sample_ns() > _SLOW_NS for _ in range(_TRIES))

    def _sample_ns(self) -> int:
        start = time.perf_counter_ns()
        self._router.route([_SAMPLE])
        return time.perf_counter_ns() - start

    async def __call__(self, text: str) -> tuple[Row, int]:
        start, loop = time.monotonic_ns(), asyncio.get_running_loop()
        answer = loop.create_future()
        self._waiting.append((text, answer))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._batch)
        return await answer, time.monotonic_ns() - start

    def _batch(self) -> None:
        batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
        texts = [text for text, _ in batch]
        if not (self.slow or any(len(text) > _LONG for text in texts)):
            self._done(batch, self._route(texts))
            return
        routing = asyncio.get_running_loop().run_in_executor(self._thread, self._route, texts)
        routing.add_done_callback(lambda rows: self._done(batch, rows.result()))

    def _done(self, batch: list[tuple[str, asyncio.Future]], rows: list[Row] | Exception) -> None:
        self._answer(batch, rows)
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._batch)

    def _route(self, texts: list[str]) -> list[Row] | Exception:
        try:
            routing = self._router.route(texts)
            return [routing.row(i) for i in range(len(texts))]
        except Exception as e:  # each of the batch's requests ends with it
            return e

    @staticmethod
    def _answer(batch: list[tuple[str, asyncio.Future]], rows: list[Row] | Exception) -> None:
        for i, (_, answer) in enumerate(batch):
            if answer.done():
                continue  # its client has gone
            if isinstance(rows, Exception):
                answer.set_exception(rows)
            else:
                answer.set_result(rows[i])


class Decider:
    """Chooses among `experts` by a policy's name; `places[c]` is the index of the expert that serves cluster c,
    `generalist` and `strong` are those of the experts that `policies.Fleet` knows by these names, if there are;
    `threshold` is that of `strong_weak`, its own if None."""

    def __init__(
        self,
        experts: Sequence[Expert],
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

    def __call__(self, row: Row, avoid: Expert | None = None) -> tuple[Expert, Decision]:
        """The expert for a prompt, among those that are up and not `avoid`; Refused where there is none."""
        up = [expert.up and expert is not avoid for expert in self.experts]
        outstanding = [expert.outstanding for expert in self.experts]
        fleet = Fleet(self._places, outstanding, up, self._generalist, self._strong)
        try:
            chosen = self.experts[self._choose(row, fleet, self._tickets)]
        except ErlabError:
            none = f"None of the {len(set(self._places))} experts is up"
            raise Refused(grpc.StatusCode.UNAVAILABLE, none) from None
        self._tickets += 1
        return chosen, Decision(chosen.name, row.cluster, row.distance, row.margin, self._policy)
