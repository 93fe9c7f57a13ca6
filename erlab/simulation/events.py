"""Event loop of a simulated system in virtual time.

At one instant engines finish first, then requests arrive, then engines start, so a request that arrives as an iteration
ends can join the next one.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from erlab.simulation.engine import SimulatedEngine

FINISH, ARRIVE, START = range(3)


def run(
    engines: Sequence[SimulatedEngine],
    submit: array,
    following: Sequence[int],
    delay: Sequence[int],
    route: Callable[[int], int] | Sequence[int],
    pauses: Sequence[int] | None = None,
    earliest: Sequence[int] | None = None,
    until: float = math.inf,
) -> array:
    """Run until every request has its last token.

    Tokens and times of requests are in the `Requests` that the engines share.

    Args:
        submit: Submission times, ns; -1 for a request that follows an answer. Filled in.
        following: Per request, the request that its user submits after the answer; -1 for none.
        delay: Per request, time between submission and arrival at the engine (gateway), ns.
        route: Engine of each request: a sequence, or a function that is called when the request leaves the gateway.
        pauses: Per request, time between the answer before and its submission, ns (default 0).
        earliest: Per request that follows an answer, the earliest submission time, ns (default 0).
        until: Time from which on no request follows an answer, ns; such a request stays at -1 in `submit`.

    Returns:
        Engine index of each request.
    """
    chosen = array("i", [-1]) * len(submit)
    heap = [(t + delay[i], ARRIVE, i, 0) for i, t in enumerate(submit) if t >= 0]
    heapify(heap)
    fixed = None if callable(route) else route
    due = [False] * len(engines)  # whether the engine's start is in the heap
    while heap:
        now, kind, index, version = heappop(heap)
        if kind == FINISH:
            engine = engines[index]
            if engine.version != version:
                continue
            for done in engine.finish():
                i = following[done]
                if i >= 0:
                    at = now if pauses is None else max(now + pauses[i], earliest[i])
                    if at < until:
                        submit[i] = at
                        heappush(heap, (at + delay[i], ARRIVE, i, 0))
            if heap and heap[0][0] == now:
                due[index] = True
                heappush(heap, (now, START, index, 0))
            elif engine.start(now) is not None:  # no other event now, so the heap is bypassed
                heappush(heap, (engine.end, FINISH, index, engine.version))
        elif kind == ARRIVE:
            chosen[index] = at = fixed[index] if fixed is not None else route(index)
            engine = engines[at]
            if engine.arrive(index, now):
                if engine.end is not None:
                    heappush(heap, (engine.end, FINISH, at, engine.version))
                elif not due[at]:
                    due[at] = True
                    heappush(heap, (now, START, at, 0))
        else:
            engine, due[index] = engines[index], False
            if engine.start(now) is not None:
                heappush(heap, (engine.end, FINISH, index, engine.version))
    return chosen
