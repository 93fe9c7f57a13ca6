"""Which expert answers, given the router's decision and the experts' state: pure functions for gateway and simulator.

A policy takes one decision (`Row`), the experts' state (`Fleet`) and the request's ticket (its number, from 0), and
returns the index of an expert that is up. It keeps nothing between calls, so the same input gives the same expert.

>>> row = Row(cluster=1, distance=0.4, margin=0.2, runner_up=2, order=(1, 2, 0))
>>> nearest(row, Fleet(experts=(0, 1, 2), outstanding=[0, 9, 0], up=[True, True, True]))
1
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from erlab.errors import ErlabError
from erlab.routing.router import Row


@dataclass(frozen=True)
class Fleet:
    """`experts[c]` is the index of the expert that serves cluster c; `outstanding[e]` counts expert e's unfinished
    requests, `up[e]` says whether it answers. The two lists may be the caller's live ones."""

    experts: Sequence[int]
    outstanding: Sequence[int]
    up: Sequence[bool]


Policy = Callable[[Row, Fleet, int], int]


def nearest(row: Row, fleet: Fleet, ticket: int = 0) -> int:
    """The nearest cluster's expert; the next-nearest's where that one is down."""
    for cluster in row.order:
        expert = fleet.experts[cluster]
        if fleet.up[expert]:
            return expert
    raise ErlabError(f"None of the {len(fleet.up)} experts is up.")


POLICIES: dict[str, Policy] = {"nearest": nearest}
