"""The clock of a simulated system: users, gateway and engines, moved from event to event.

At one instant first engines finish, then requests arrive, then engines start, so a request that arrives as an
iteration ends takes part in the next one.
"""

from array import array
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from erlab.simulation.engine import Engine

FINISH, ARRIVE, START = range(3)


def run(
    engines: Sequence[Engine],
    submit: array,
    following: Sequence[int],
    delay: Sequence[int],
    choose: Callable[[int], int] | Sequence[int],
    pause: int = 0,
) -> array:
    """Run until every request that is submitted has its last token; returns each request's engine.

    `submit` (ns) holds the times of first requests and -1 for those that follow an answer; it is filled in.
    `following[i]` is the request its user sends `pause` ns after the answer to `i`, -1 for none. `delay[i]` ns pass
    between submission and arrival (the gateway). `choose` names the engine of each request: a sequence, or a function
    asked when the request has passed the gateway. Requests' tokens and times are in the engines' shared `Requests`.
    """
    chosen = array("i", [-1]) * len(submit)
    heap = [(t + delay[i], ARRIVE, i, 0) for i, t in enumerate(submit) if t >= 0]
    heapify(heap)
    fixed = None if callable(choose) else choose
    due = [False] * len(engines)  # whether its start is among the events
    while heap:
        now, kind, who, version = heappop(heap)
        if kind == FINISH:
            engine = engines[who]
            if engine.version != version:
                continue
            for done in engine.finish():
                i = following[done]
                if i >= 0:
                    submit[i] = now + pause
                    heappush(heap, (now + pause + delay[i], ARRIVE, i, 0))
            if heap and heap[0][0] == now:
                due[who] = True
                heappush(heap, (now, START, who, 0))
            elif engine.start(now) is not None:  # nothing else happens now
                heappush(heap, (engine.end, FINISH, who, engine.version))
        elif kind == ARRIVE:
            chosen[who] = at = fixed[who] if fixed is not None else choose(who)
            engine = engines[at]
            if engine.arrive(who, now):
                if engine.end is not None:
                    heappush(heap, (engine.end, FINISH, at, engine.version))
                elif not due[at]:
                    due[at] = True
                    heappush(heap, (now, START, at, 0))
        else:
            engine, due[who] = engines[who], False
            if engine.start(now) is not None:
                heappush(heap, (engine.end, FINISH, who, engine.version))
    return chosen
