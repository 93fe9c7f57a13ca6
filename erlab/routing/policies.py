"""Routing policies: choose the expert of a request. Pure functions for gateway and simulator.

A policy takes the router's decision (`Row`), the state of the experts (`FleetState`) and the request's ticket (its
number, from 0), and returns the index of an expert that is up. It keeps no state: equal input gives the same expert.
`POLICIES` is the registry; `functools.partial` sets a policy's parameters, such as ``partial(spill, free=32)``.
A policy with a need beyond experts and their load has an entry in `NEEDS` (a field of `FleetState`), a parameter that
users may set one in `NUMBERS`, and what it needs of the router one in `erlab.gateway.server._ROUTER_NEEDS`.

>>> row = Row(cluster=1, distance=0.4, margin=0.2, runner_up=2, order=(1, 2, 0))
>>> fleet = FleetState(experts=(0, 1, 2), outstanding=[0, 9, 0], up=[True, True, True])
>>> nearest(row, fleet), spill(row, fleet), least_outstanding(row, fleet)
(1, 2, 2)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from erlab.errors import ErlabError
from erlab.routing.compiled import Row


@dataclass(frozen=True)
class FleetState:
    """State of the experts. The sequences may be live views of the caller's state.

    Attributes:
        experts: Index of the expert that serves each cluster.
        outstanding: Number of unfinished requests of each expert.
        up: Whether each expert is available.
        generalist: Index of the expert for prompts that fit no cluster, or None.
        strong: Index of the expert for difficult prompts, or None.
        cached: Tokens of the prompt that each expert's prefix cache has, or None if unknown.
    """

    experts: Sequence[int]
    outstanding: Sequence[int]
    up: Sequence[bool]
    generalist: int | None = None
    strong: int | None = None
    cached: Sequence[int] | None = None


Policy = Callable[[Row, FleetState, int], int]


def nearest(row: Row, fleet: FleetState, ticket: int = 0) -> int:
    """Choose the expert of the nearest cluster whose expert is up; the paper's policy."""
    for cluster in row.order:
        expert = fleet.experts[cluster]
        if fleet.up[expert]:
            return expert
    raise ErlabError(f"None of the {len(fleet.up)} experts is up.")


def outlier(row: Row, fleet: FleetState, ticket: int = 0) -> int:
    """Choose the generalist for a prompt that fits no cluster (`Row.outlier`), the nearest expert otherwise."""
    if row.outlier and fleet.generalist is not None and fleet.up[fleet.generalist]:
        return fleet.generalist
    return nearest(row, fleet)


def spill(row: Row, fleet: FleetState, ticket: int = 0, factor: float = 1.25, free: int = 8) -> int:
    """Choose the nearest expert whose load stays within a bound.

    With free = 1 this is consistent hashing with bounded loads (Mirrokni et al. 2018); a larger `free` keeps prompts at
    their own expert while its batch has room.

    Args:
        factor: Bound on the unfinished requests, this one included, relative to their mean over the experts that are
            up; at least 1, so that some expert always meets the bound.
        free: Unfinished requests that are always allowed.
    """
    return _within_bound(_ranked(row, fleet), fleet, factor, free)[0]


def least_outstanding(row: Row, fleet: FleetState, ticket: int = 0) -> int:
    """Choose the expert with the fewest unfinished requests, the nearest among equals."""
    return min(_ranked(row, fleet), key=fleet.outstanding.__getitem__)


def longest_prefix(row: Row, fleet: FleetState, ticket: int = 0, factor: float = 1.25, free: int = 8) -> int:
    """Choose the expert that has cached most of the prompt, the nearest among equals, within the bound of `spill`.

    Other experts than the nearest answer, so experts should be replicas of one model.
    """
    if fleet.cached is None:
        return nearest(row, fleet)
    return max(_within_bound(_ranked(row, fleet), fleet, factor, free), key=fleet.cached.__getitem__)


def two_choices(row: Row, fleet: FleetState, ticket: int = 0) -> int:
    """Choose the less loaded of two random experts (drawn by ticket), the nearer among equals."""
    ranked = _ranked(row, fleet)
    if len(ranked) == 1:
        return ranked[0]
    draw = _scrambled(ticket)
    first = draw % len(ranked)
    second = (first + 1 + (draw >> 32) % (len(ranked) - 1)) % len(ranked)
    return min((ranked[i] for i in sorted((first, second))), key=fleet.outstanding.__getitem__)


def round_robin(row: Row, fleet: FleetState, ticket: int = 0) -> int:
    """Choose the experts in turn, regardless of the prompt."""
    experts = sorted(_ranked(row, fleet))
    return experts[ticket % len(experts)]


def random(row: Row, fleet: FleetState, ticket: int = 0) -> int:
    """Choose a random expert (drawn by ticket), regardless of the prompt."""
    experts = sorted(_ranked(row, fleet))
    return experts[_scrambled(ticket) % len(experts)]


def strong_weak(row: Row, fleet: FleetState, ticket: int = 0, threshold: float = 0.5) -> int:
    """Choose the strong expert for a difficult prompt, the nearest expert otherwise (RouteLLM, Hybrid LLM).

    Args:
        row: Decision of the router; `Row.difficulty` may be None.
        threshold: Difficulty from which a prompt is difficult, 0 to 1.
    """
    hard = row.difficulty is not None and row.difficulty >= threshold
    if hard and fleet.strong is not None and fleet.up[fleet.strong]:
        return fleet.strong
    return nearest(row, fleet)


POLICIES: dict[str, Policy] = {
    policy.__name__: policy
    for policy in (
        nearest, outlier, spill, least_outstanding, two_choices, round_robin, random, strong_weak, longest_prefix
    )
}  # fmt: skip
# Field of `FleetState` that a policy needs; without it the policy equals `nearest`.
NEEDS = {"outlier": "generalist", "strong_weak": "strong", "longest_prefix": "cached"}
SIMULATED = ("longest_prefix",)  # policies that need what only the simulation knows


def gateway_policies() -> tuple[str, ...]:
    """Return the names of the policies that a gateway can follow."""
    return tuple(name for name in POLICIES if name not in SIMULATED)


# Special expert that a policy of the gateway needs.
SPECIAL_EXPERTS = {policy: need for policy, need in NEEDS.items() if policy not in SIMULATED}
# Parameters of policies that a user may set, with their lowest and highest value.
NUMBERS = {"threshold": (0, 1), "factor": (1, math.inf), "free": (1, math.inf)}


def _within_bound(ranked: list[int], fleet: FleetState, factor: float, free: int) -> list[int]:
    """Return the experts whose unfinished requests stay within the bound of `spill`, in the same order."""
    load = sum(fleet.outstanding[e] for e in ranked) + 1
    bound = max(free, math.ceil(factor * load / len(ranked)))
    return [e for e in ranked if fleet.outstanding[e] + 1 <= bound]


def _ranked(row: Row, fleet: FleetState) -> list[int]:
    """Return the distinct experts of the clusters that are up, nearest first."""
    ranked = list(dict.fromkeys(e for c in row.order if fleet.up[e := fleet.experts[c]]))
    if not ranked:
        raise ErlabError(f"None of the {len(fleet.up)} experts is up.")
    return ranked


def _scrambled(ticket: int) -> int:
    """Hash a number to 64 well-mixed bits (SplitMix64's finaliser, Steele et al. 2014)."""
    z = (ticket + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return z ^ z >> 31
