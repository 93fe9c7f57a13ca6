"""Properties of the policies: whatever the state, never an expert that is down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlab.errors import ErlabError
from erlab.routing.policies import POLICIES, Fleet, nearest
from erlab.routing.router import Row


@st.composite
def states(draw):
    clusters, experts = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    order = tuple(draw(st.permutations(range(clusters))))
    fleet = Fleet(
        experts=[c % experts for c in range(clusters)],
        outstanding=draw(st.lists(st.integers(0, 300), min_size=experts, max_size=experts)),
        up=draw(st.lists(st.booleans(), min_size=experts, max_size=experts)),
    )
    return Row(order[0], 0.5, 0.1, order[1] if clusters > 1 else -1, order), fleet


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(states(), st.integers(0, 10**6))
def test_never_an_expert_that_is_down(policy, state, ticket):
    row, fleet = state
    reachable = {e for e in fleet.experts if fleet.up[e]}
    if reachable:
        assert policy(row, fleet, ticket) in reachable
    else:
        with pytest.raises(ErlabError, match="None of the .* experts is up"):
            policy(row, fleet, ticket)


@given(states())
def test_nearest_ignores_load_and_skips_only_the_dead(state):
    row, fleet = state
    ups = [fleet.experts[c] for c in row.order if fleet.up[fleet.experts[c]]]
    if ups:
        assert nearest(row, fleet) == ups[0]
