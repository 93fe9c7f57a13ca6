"""Which expert answers, given the router's decision and the experts' state: pure functions for gateway and simulator.

A policy takes one decision (`Row`), the experts' state (`Fleet`) and the request's ticket (its number, from 0), and
returns the index of an expert that is up. It keeps nothing between calls, so the same input gives the same expert.
`POLICIES` names them all; `functools.partial` sets a rule's numbers, such as ``partial(spill, free=32)``.

>>> row = Row(cluster=1, distance=0.4, margin=0.2, runner_up=2, order=(1, 2, 0))
>>> fleet = Fleet(experts=(0, 1, 2), outstanding=[0, 9, 0], up=[True, True, True])
>>> nearest(row, fleet), spill(row, fleet), least_outstanding(row, fleet)
(1, 2, 2)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from erlab.errors import ErlabError
from erlab.routing.compiled import Row


@dataclass(frozen=True)
class Fleet:
    """`experts[c]` is the index of the expert that serves cluster c; `outstanding[e]` counts expert e's unfinished
    requests, `up[e]` says whether it answers. The sequences may be the caller's live ones.

    `generalist` is the expert for prompts that fit no cluster, `strong` the one for difficult prompts, if there are.
    """

    experts: Sequence[int]
    outstanding: Sequence[int]
    up: Sequence[bool]
    generalist: int | None = None
    strong: int | None = None


Policy = Callable[[Row, Fleet, int], int]


def nearest(row: Row, fleet: Fleet, ticket: int = 0) -> int:
    """The nearest cluster's expert; the next-nearest's where that one is down."""
    for cluster in row.order:
        expert = fleet.experts[cluster]
        if fleet.up[expert]:
            return expert
    raise ErlabError(f"None of the {len(fleet.up)} experts is up.")


def outlier(row: Row, fleet: Fleet, ticket: int = 0) -> int:
    """The generalist for a prompt that fits no cluster (`Routing.outlier`), the nearest cluster's expert for the rest."""
    if row.outlier and fleet.generalist is not None and fleet.up[fleet.generalist]:
        return fleet.generalist
    return nearest(row, fleet)


def spill(row: Row, fleet: Fleet, ticket: int = 0, factor: float = 1.25, free: int = 8) -> int:
    """The nearest cluster's expert whose load stays within a bound: with this request it has at most `free`
    outstanding, or at most `factor` times the mean over experts that are up, rounded up.

    For free = 1 that is consistent hashing with bounded loads (Mirrokni et al. 2018), whose bound some expert always
    meets if factor >= 1; `free` keeps prompts at their own expert while a batch costs it nothing.
    """
    ranked = _ranked(row, fleet)
    load = sum(fleet.outstanding[e] for e in ranked) + 1
    bound = max(free, math.ceil(factor * load / len(ranked)))
    return next(e for e in ranked if fleet.outstanding[e] + 1 <= bound)


def least_outstanding(row: Row, fleet: Fleet, ticket: int = 0) -> int:
    """The expert with the fewest unfinished requests; among equals the nearest."""
    return min(_ranked(row, fleet), key=fleet.outstanding.__getitem__)


def two_choices(row: Row, fleet: Fleet, ticket: int = 0) -> int:
    """Of two experts drawn at random (by ticket) the one with fewer unfinished requests; among equals the nearer."""
    ranked = _ranked(row, fleet)
    if len(ranked) == 1:
        return ranked[0]
    draw = _scrambled(ticket)
    first = draw % len(ranked)
    second = (first + 1 + (draw >> 32) % (len(ranked) - 1)) % len(ranked)
    return min((ranked[i] for i in sorted((first, second))), key=fleet.outstanding.__getitem__)


def round_robin(row: Row, fleet: Fleet, ticket: int = 0) -> int:
    """The experts in turn, whatever the prompt."""
    experts = sorted(_ranked(row, fleet))
    return experts[ticket % len(experts)]


def random(row: Row, fleet: Fleet, ticket: int = 0) -> int:
    """An expert drawn by ticket, whatever the prompt."""
    experts = sorted(_ranked(row, fleet))
    return experts[_scrambled(ticket) % len(experts)]


def strong_weak(row: Row, fleet: Fleet, ticket: int = 0, threshold: float = 0.5) -> int:
    """The strong expert for a prompt at least as difficult as `threshold` (RouteLLM, Hybrid LLM: the knob between cost
    and quality, see `difficulty.threshold`); the nearest cluster's expert for the rest and where difficulty is unknown.
    """
    hard = row.difficulty is not None and row.difficulty >= threshold
    if hard and fleet.strong is not None and fleet.up[fleet.strong]:
        return fleet.strong
    return nearest(row, fleet)


POLICIES: dict[str, Policy] = {
    policy.__name__: policy
    for policy in (nearest, outlier, spill, least_outstanding, two_choices, round_robin, random, strong_weak)
}


def _ranked(row: Row, fleet: Fleet) -> list[int]:
    """The clusters' experts that are up, each once, nearest first."""
    ranked = list(dict.fromkeys(e for c in row.order if fleet.up[e := fleet.experts[c]]))
    if not ranked:
        raise ErlabError(f"None of the {len(fleet.up)} experts is up.")
    return ranked


def _scrambled(ticket: int) -> int:
    """64 well-mixed bits of a number (SplitMix64's finaliser, Steele et al. 2014)."""
    z = (ticket + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return z ^ z >> 31
