"""Tests of in-flight batching: equality with a plain loop to the nanosecond, and invariants."""

from array import array
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import plain_run

from erlab import paper
from erlab.errors import ErlabError
from erlab.simulation import components, events
from erlab.simulation.engine import KV_POLICIES, Batching, Requests, SimulatedEngine
from erlab.simulation.hardware import gpu
from erlab.simulation.steptimes import StepTimes

TIMES = StepTimes(components.roofline(paper.SYSTEMS["v2"]["E"].expert, gpu("H100")), 400, (1.3, 1.1), 0.0003)


def fast_run(batching, max_batch, pool, requests):
    """Serve requests of `plain_loop.plain_run` with the fast engine; return first and last times, and the engine."""
    columns = Requests.of([r["prompt"] for r in requests], [r["output"] for r in requests])
    engine = SimulatedEngine(TIMES, columns, batching, max_batch, pool)
    submit = array("q", [-1 if isinstance(r["at"], tuple) else r["at"] for r in requests])
    following = [-1] * len(requests)
    for i, r in enumerate(requests):
        if isinstance(r["at"], tuple):
            following[r["at"][1]] = i
    events.run([engine], submit, following, [0] * len(requests), [0] * len(requests))
    return list(columns.first), list(columns.last), engine


@st.composite
def loads(draw):
    """Draw closed-loop users with any start, and engines with any capacity that suffices."""
    turns = draw(st.integers(1, 4))
    users = draw(st.integers(1, 12))
    requests = []
    for _ in range(users):
        start = draw(st.integers(0, 60)) * 1_000_000
        for turn in range(turns):
            at = ("after", len(requests) - 1) if turn else start
            requests.append(dict(at=at, prompt=draw(st.integers(1, 120)), output=draw(st.integers(1, 60))))
    longest = max(r["prompt"] + r["output"] for r in requests)
    block = draw(st.sampled_from([1, 4, 16]))
    pool = -(-longest // block) * block + draw(st.integers(0, 300))
    max_batch = draw(st.integers(1, 8))
    chunked = draw(st.booleans())
    widest = longest  # an evicted request also prefills its answer so far
    budget = draw(st.integers(max_batch + 1, 150)) if chunked else draw(st.integers(widest, widest + 150))
    batching = Batching(budget, chunked, draw(st.sampled_from(KV_POLICIES)), block, draw(st.booleans()))
    return requests, batching, max_batch, pool


@settings(max_examples=150, deadline=None)
@given(loads())
def test_fast_forward_equals_the_plain_loop_to_the_nanosecond(load):
    requests, batching, max_batch, pool = load
    first, last, engine = fast_run(batching, max_batch, pool, requests)
    log = []
    plain = plain_run(TIMES, batching, max_batch, pool, [dict(r) for r in requests], log)
    assert first == [r["first"] for r in plain]
    assert last == [r["last"] for r in plain]
    assert engine._iteration == len(log)


@settings(max_examples=60, deadline=None)
@given(loads())
def test_pool_batch_limit_and_token_budget_are_never_exceeded(load):
    requests, batching, max_batch, pool = load
    first, last, engine = fast_run(batching, max_batch, pool, requests)
    assert engine.least_free >= 0
    assert engine.free == engine.blocks and engine.running == engine.context == engine.unfinished == 0
    assert min(first) >= 0 and all(a <= b for a, b in zip(first, last))
    log = []
    plain_run(TIMES, batching, max_batch, pool, [dict(r) for r in requests], log)
    assert all(row["used"] <= row["pool"] for row in log)
    assert all(row["batch"] <= max_batch and row["batch"] + row["prefill"] <= batching.max_num_tokens for row in log)


@settings(max_examples=60, deadline=None)
@given(loads())
def test_first_come_first_served(load):
    requests, batching, max_batch, pool = load
    batching = replace(batching, policy="guaranteed_no_evict")
    for r in requests:
        r["at"] = 0 if isinstance(r["at"], tuple) else r["at"]
    first, _, _ = fast_run(batching, max_batch, pool, requests)
    order = sorted(range(len(requests)), key=lambda i: (requests[i]["at"], i))
    assert [first[i] for i in order] == sorted(first)


def test_single_request_takes_the_sum_of_its_iterations():
    """One prefill, then one iteration per token with a context that grows by one."""
    first, last, engine = fast_run(Batching(), 4, 1024, [dict(at=7, prompt=100, output=5)])
    prefill = TIMES.mixed(0, 0, 1, 100, (), 1)
    assert first == [7 + prefill]
    assert last == [7 + prefill + sum(TIMES.decode(1, c) for c in (100, 101, 102, 103))]
    assert engine._iteration == 5


def test_equal_requests_stay_synchronised():
    """Requests of equal lengths, submitted at once, get first and last tokens at the same times."""
    requests = [dict(at=0, prompt=50, output=20) for _ in range(6)]
    first, last, _ = fast_run(Batching(), 8, 4096, requests)
    assert len(set(first)) == len(set(last)) == 1
    first, last, _ = fast_run(Batching(100), 8, 4096, requests)  # two prompts per iteration, beside decodes
    assert len(set(first)) > 1


def test_chunked_context_decodes_while_a_long_prompt_is_prefilled():
    short, long = dict(at=0, prompt=10, output=4), dict(at=1, prompt=390, output=2)
    whole = fast_run(Batching(400), 4, 4096, [short, long])
    chunked = fast_run(Batching(60, chunked_context=True), 4, 4096, [short, long])
    assert chunked[1][0] < whole[1][0]  # the short answer is not delayed
    assert chunked[0][1] > whole[0][1]  # the long prompt gets its first token later


def test_batch_chosen_ahead_excludes_requests_that_arrive_during_the_previous_one():
    """A request that arrives during an iteration joins the one after next, except during the first after idling."""
    requests = [dict(at=0, prompt=50, output=20), dict(at=0, prompt=50, output=20)]
    prefill = TIMES.mixed(0, 0, 1, 50, (), 1)
    requests[1]["at"] = prefill + 1  # during the first decode iteration
    decodes = [TIMES.decode(1, 50 + j) for j in range(20)]
    joins = lambda n: prefill + sum(decodes[:n]) + TIMES.mixed(1, 50 + n, 1, 50, (), 1)  # noqa: E731
    assert fast_run(Batching(), 4, 1024, requests)[0] == [prefill, joins(1)]
    assert fast_run(Batching(schedules_ahead=True), 4, 1024, requests)[0] == [prefill, joins(2)]
    requests[1]["at"] = prefill - 1  # during the first iteration after idling
    joined = prefill + TIMES.mixed(1, 50, 1, 50, (), 1)
    assert fast_run(Batching(schedules_ahead=True), 4, 1024, requests)[0][1] == joined


def test_guaranteed_no_evict_reserves_blocks_for_the_whole_request():
    requests = [dict(at=0, prompt=60, output=68) for _ in range(2)]
    first, last, engine = fast_run(Batching(block_tokens=64), 4, 192, requests)
    assert first[1] > last[0]
    first, last, _ = fast_run(Batching(block_tokens=64), 4, 256, requests)
    assert first[0] == first[1]


def test_max_utilization_starts_both_requests_and_evicts_the_later_one():
    requests = [dict(at=0, prompt=60, output=68) for _ in range(2)]
    batching = Batching(block_tokens=64, policy="max_utilization")
    first, last, _ = fast_run(batching, 4, 192, requests)
    assert first[0] == first[1]
    assert last[1] > last[0]
    _, last, _ = fast_run(batching, 4, 256, requests)
    assert last[1] == last[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(pool=100), "'pool_tokens' parameter of Engine must hold the longest request of 150 tokens"),
        (dict(batching=Batching(90)), "'max_num_tokens' parameter of Batching must be at least 100, the longest"),
        (
            dict(batching=Batching(120, policy="max_utilization")),
            "'max_num_tokens' parameter of Batching must be at least 149, the longest prompt and the answer so far",
        ),
        (dict(batching=Batching(4, True)), "'max_num_tokens' parameter of Batching must be above max_batch_size = 4"),
        (dict(max_batch=0), "'max_batch_size' parameter of Engine must be 1 to 4096"),
        (dict(output=400), "must be at most 400, the longest context of the step times"),
    ],
)
def test_requests_that_cannot_run_raise_with_the_numbers(change, message):
    given = dict(batching=Batching(), max_batch=4, pool=1024, output=50) | change
    with pytest.raises(ErlabError, match=message):
        fast_run(given["batching"], given["max_batch"], given["pool"], [dict(at=0, prompt=100, output=given["output"])])


def test_unknown_policy_raises():
    with pytest.raises(ErlabError, match="guaranteed_no_evict, max_utilization. Got 'evict'"):
        Batching(policy="evict")


def test_row_is_the_cumulative_sum_of_decode_times():
    row = TIMES.row(5)
    assert [row[c + 1] - row[c] for c in range(400)] == [TIMES.decode(5, c) for c in range(400)]
    assert np.all(np.diff(np.diff(row)) >= 0)  # longer contexts never cost less on the roofline
