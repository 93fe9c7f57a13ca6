"""Tests of policy properties: available experts only, bounded load, nearest expert when idle."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlab.errors import ErlabError
from erlab.explore.settings import Setting
from erlab.gateway import fleet
from erlab.routing.compiled import Row
from erlab.routing.policies import (
    POLICIES,
    FleetState,
    least_outstanding,
    nearest,
    outlier,
    random,
    round_robin,
    spill,
    strong_weak,
    two_choices,
)
from erlab.simulation.system import simulated_policies


@st.composite
def states(draw):
    clusters, experts = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    order = tuple(draw(st.permutations(range(clusters))))
    fleet = FleetState(
        experts=[c % experts for c in range(clusters)],
        outstanding=draw(st.lists(st.integers(0, 300), min_size=experts, max_size=experts)),
        up=draw(st.lists(st.booleans(), min_size=experts, max_size=experts)),
        generalist=draw(st.none() | st.integers(0, experts - 1)),
        strong=draw(st.none() | st.integers(0, experts - 1)),
    )
    runner_up = order[1] if clusters > 1 else -1
    difficulty = draw(st.none() | st.floats(0, 1))
    return Row(order[0], 0.5, 0.1, runner_up, order, draw(st.booleans()), difficulty), fleet


tickets = st.integers(0, 10**9)


def reachable(fleet):
    return {e for e in fleet.experts if fleet.up[e]}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(states(), tickets)
def test_policies_choose_available_experts_deterministically(policy, state, ticket):
    row, fleet = state
    special = {e for e in (fleet.generalist, fleet.strong) if e is not None and fleet.up[e]}
    if reachable(fleet):
        chosen = policy(row, fleet, ticket)
        assert chosen in reachable(fleet) | special
        assert policy(row, fleet, ticket) == chosen
    elif not special:
        with pytest.raises(ErlabError, match="None of the .* experts is up"):
            policy(row, fleet, ticket)


@pytest.mark.parametrize("policy", [nearest, outlier, spill, partial(spill, free=1), least_outstanding, strong_weak])
@given(states())
def test_idle_fleets_use_the_nearest_expert(policy, state):
    row, fleet = state
    fleet = replace(fleet, outstanding=[0] * len(fleet.up), generalist=None, strong=None)
    if reachable(fleet):
        assert policy(row, fleet) == next(fleet.experts[c] for c in row.order if fleet.up[fleet.experts[c]])


def test_added_policies_are_known_everywhere(monkeypatch):
    monkeypatch.setitem(POLICIES, "farthest", lambda row, fleet, ticket=0: fleet.experts[row.order[-1]])
    assert "farthest" in simulated_policies()
    assert Setting(policy="farthest").policy == "farthest"
    assert fleet.from_clusters("router", "127.0.0.1:1", ("a",), policy="farthest").policy == "farthest"


@given(states())
def test_nearest_ignores_load(state):
    row, fleet = state
    if reachable(fleet):
        assert nearest(row, fleet) == nearest(row, replace(fleet, outstanding=[0] * len(fleet.up)))


@given(states(), st.floats(1, 3), st.integers(1, 20))
def test_spill_bounds_the_load(state, factor, free):
    row, fleet = state
    if ups := reachable(fleet):
        chosen = spill(row, fleet, factor=factor, free=free)
        mean = (sum(fleet.outstanding[e] for e in ups) + 1) / len(ups)
        assert fleet.outstanding[chosen] + 1 <= max(free, math.ceil(factor * mean))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200))
def test_spill_bounds_the_load_of_any_sequence_of_prompts(clusters):
    outstanding = [0] * 4
    for n, cluster in enumerate(clusters, 1):
        order = tuple((cluster + j) % 4 for j in range(4))
        row = Row(cluster, 0.1, 0.1, order[1], order)
        outstanding[spill(row, FleetState(range(4), outstanding, [True] * 4), n, factor=1.25, free=1)] += 1
        assert max(outstanding) <= math.ceil(1.25 * n / 4)


@given(states())
def test_least_outstanding_chooses_the_least_loaded_expert(state):
    row, fleet = state
    if ups := reachable(fleet):
        chosen = least_outstanding(row, fleet)
        assert fleet.outstanding[chosen] == min(fleet.outstanding[e] for e in ups)


@given(states(), tickets)
def test_two_choices_avoids_the_busiest_expert(state, ticket):
    row, fleet = state
    ups = reachable(fleet)
    if len(ups) > 1:
        busiest = max(fleet.outstanding[e] for e in ups)
        if sum(fleet.outstanding[e] == busiest for e in ups) == 1:
            assert fleet.outstanding[two_choices(row, fleet, ticket)] < busiest


@pytest.mark.parametrize("policy", [round_robin, random])
def test_round_robin_and_random_are_uniform(policy):
    row, fleet = Row(0, 0.1, 0.1, 1, (0, 1, 2, 3)), FleetState(range(4), [0] * 4, [True, True, False, True])
    counts = Counter(policy(row, fleet, ticket) for ticket in range(3000))
    assert set(counts) == {0, 1, 3}
    if policy is round_robin:
        assert set(counts.values()) == {1000}
    if policy is random:
        assert all(900 < n < 1100 for n in counts.values())  # 1000 +- 26 expected


def test_two_choices_balances_better_than_random():
    """The largest of n bins exceeds the mean by about log log n, not log n / log log n (Mitzenmacher 2001)."""
    excess = {}
    for policy in (random, two_choices):
        outstanding = [0] * 50
        row, fleet = Row(0, 0.1, 0.1, 1, tuple(range(50))), FleetState(range(50), outstanding, [True] * 50)
        for ticket in range(5000):
            outstanding[policy(row, fleet, ticket)] += 1
        excess[policy] = max(outstanding) - 100
    assert excess[two_choices] <= 4 < 10 < excess[random]


def test_outliers_use_the_generalist_if_it_is_up():
    row, fleet = Row(0, 0.9, 0.1, 1, (0, 1), outlier=True), FleetState((0, 1), [0, 0, 99], [True] * 3, generalist=2)
    assert outlier(row, fleet) == 2
    assert outlier(row._replace(outlier=False), fleet) == 0
    assert outlier(row, replace(fleet, up=[True, True, False])) == 0


def test_higher_thresholds_use_the_strong_expert_less():
    rows = [Row(0, 0.1, 0.1, 1, (0, 1), difficulty=d / 10) for d in range(10)]
    fleet = FleetState((0, 1), [0, 0, 0], [True] * 3, strong=2)
    shares = [sum(strong_weak(r, fleet, threshold=t) == 2 for r in rows) for t in (0, 0.35, 0.9, 1.1)]
    assert shares == [10, 6, 1, 0]
