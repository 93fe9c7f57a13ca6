"""Prefix caching of the simulated engine: hit rates by counting, times by arithmetic, memory by conservation."""

from array import array
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlab import paper, paths
from erlab.errors import ErlabError
from erlab.prompts import traces, traffic
from erlab.prompts.loads import Load
from erlab.simulation import Batching, Setup, events, replay, simulate
from erlab.simulation.engine import KV_POLICIES, Requests, SimulatedEngine
from erlab.simulation.prefixes import PrefixCache, blocks, hit_rate
from erlab.simulation.system import step_times

ROOF = Setup(steps="roofline", era=None)
CACHING = replace(ROOF, batching=Batching(block_tokens=16, prefix_caching=True))
A, D, E = (paper.SYSTEMS["v2"][k] for k in "ADE")
SHARED = paths.ROOT.parent / "shared" / "traces"


def load_of(ids, at=None, block=16, output=3):
    """Requests whose prompts are exactly these blocks and one more token."""
    n = len(ids)
    prompts = np.array([block * len(own) + 1 for own in ids])
    at = np.zeros(n) if at is None else np.asarray(at, float)
    return replace(traffic.open_loop(at, prompts, np.full(n, output)), prefix=ids, block_tokens=block)


def chains(draw, count):
    """Prompts as paths in a tree: an id stands for its block and all before it."""
    paths_ = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=count, max_size=count))
    ids = {}
    return [tuple(ids.setdefault(tuple(own[: i + 1]), len(ids)) for i in range(len(own))) for own in paths_]


trees = st.composite(lambda draw: chains(draw, draw(st.integers(1, 25))))()


@given(trees)
def test_an_infinite_cache_misses_each_block_once(ids):
    found = simulate(replace(E, count=1), traffic=load_of(ids), setup=CACHING).runs["prefix_cache"].item()
    tokens = sum(16 * len(own) + 1 for own in ids)
    missed = len({block for own in ids for block in own})
    expected = 16 * (sum(map(len, ids)) - missed) / tokens
    assert found["hit_rate"] == pytest.approx(expected) == pytest.approx(found["infinite_hit_rate"])


@given(trees, st.integers(0, 8))
def test_a_small_cache_drops_the_least_recently_used_blocks(ids, most):
    """Requests one at a time, against a list of blocks in the order of their last use."""
    cache, kept, hits, expected = PrefixCache(most), OrderedDict(), [], []
    for own in ids:
        hits.append(cache.hits(own))
        cache.acquire(own)
        cache.release(own)
        cache.shrink(1000)
        expected.append(next((i for i, block in enumerate(own) if block not in kept), len(own)))
        for block in reversed(own):
            kept[block] = True
            kept.move_to_end(block)
        while len(kept) > most:
            kept.popitem(last=False)
    assert hits == expected


@given(trees, st.sampled_from(KV_POLICIES), st.booleans(), st.integers(8, 40), st.none() | st.integers(0, 300))
def test_all_blocks_are_free_at_the_end(ids, policy, chunked, pool_blocks, prefix_pool):
    batching = Batching(64 if chunked else 8192, chunked, policy, 16, prefix_caching=True, prefix_pool=prefix_pool)
    load = load_of(ids, output=20)
    requests = Requests.of(load.input_tokens.tolist(), load.output_tokens.tolist(), *blocks(ids, load.input_tokens, 16, 16))
    engine = SimulatedEngine(step_times(E.expert, ROOF), requests, batching, 8, 16 * pool_blocks)
    n = len(ids)
    events.run([engine], array("q", [0] * n), [-1] * n, [0] * n, [0] * n)
    assert min(requests.last) > 0 and engine.free == engine.blocks and engine.least_free >= 0
    assert not engine.running and not engine.context


def test_a_cached_prefix_is_attended_to_but_not_prefilled():
    times = step_times(E.expert, ROOF)
    ids = [tuple(range(50)), (*range(40), 77, 78, 79)]
    found = simulate(replace(E, count=1), traffic=load_of(ids, [0, 10], output=1), setup=replace(CACHING, gateway=0.0))
    took = (found.requests["t_last"] - found.requests["t_submit"]).tolist()
    first, second = 16 * 50 + 1, 16 * 43 + 1
    assert took == [times.mixed(0, 0, 1, first, (), 1), times.mixed(0, 0, 1, second - 640, (640,), 1)]
    plain = simulate(replace(E, count=1), traffic=load_of(ids, [0, 10], output=1), setup=replace(ROOF, gateway=0.0))
    assert (plain.requests["t_last"] - plain.requests["t_submit"]).iloc[1] == times.mixed(0, 0, 1, second, (), 1)


def test_running_requests_share_the_blocks_of_a_common_prefix():
    """A pool for one request and a half takes two with the same prompt."""
    ids = [tuple(range(20))] * 2
    n, load = 2, load_of(ids, output=10)
    known = blocks(ids, load.input_tokens, 16, 16)
    requests = Requests.of(load.input_tokens.tolist(), load.output_tokens.tolist(), *known)
    engine = SimulatedEngine(step_times(E.expert, ROOF), requests, CACHING.batching, 8, 16 * 30)
    for request in range(n):
        engine.arrive(request, 0)
    engine.start(0)
    engine.finish()
    assert engine.running == 2 and engine.blocks - engine.free == 20 + 2  # one block each is their own


def test_ids_of_smaller_blocks_are_joined_to_kv_blocks():
    assert blocks([(1, 2, 3, 4, 5)], [16 * 5], 16, 32) == ([(2, 4)], 32)  # the last token is never cached
    assert blocks([(1, 2, 3)], [3 * 512 + 1], 512, 64) == ([(1, 2, 3)], 512)
    assert blocks([(7, 7, 8)], [999], 64, 64)[0] == [(7, 8)]
    with pytest.raises(ErlabError, match="divisor or multiple of the KV block, 64 tokens. Got 48"):
        blocks([(1,)], [100], 48, 64)


def test_the_longest_prefix_attracts_requests_within_the_bound():
    rng = np.random.default_rng(0)
    tree = [tuple(1000 * root + i for i in range(60)) for root in range(16)]
    ids = [(*tree[root], 10**6 + i) for i, root in enumerate(rng.integers(16, size=300))]
    at = np.sort(rng.uniform(0, 30, 300))
    rates = {}
    for policy in ("nearest", "least_outstanding", "longest_prefix"):
        found = simulate(E, traffic=load_of(ids, at), setup=CACHING, policy=policy)
        rates[policy] = found.runs["prefix_cache"].item()["hit_rate"]
    assert rates["longest_prefix"] > 0.9 > 0.75 > max(rates["nearest"], rates["least_outstanding"])


def test_caching_needs_known_prefixes():
    with pytest.raises(ErlabError, match="'prefix_caching' .* be left out without known prefixes"):
        simulate(E, 3, setup=CACHING)
    with pytest.raises(ErlabError, match="'prefix_pool' .* only with prefix_caching"):
        Batching(prefix_pool=5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no collection of real traces beside the repository")
def test_mooncakes_own_ids_reach_the_hit_rate_of_an_infinite_cache():
    read = traces.read(SHARED / "mooncake_synthetic.jsonl").traffic
    assert hit_rate(read.prefix) == pytest.approx(1 - 43_924 / 121_877)  # distinct ids of all ids
    short = traffic.resized(read, 1 / 64)  # all 43,924 blocks fit into one KV cache
    setup = replace(ROOF, batching=Batching(block_tokens=8, prefix_caching=True))
    found = replay(replace(E, count=1), Load(trace=short), setup=setup)
    rates = found.runs["prefix_cache"].item()
    assert rates["hit_rate"] == pytest.approx(rates["infinite_hit_rate"]) and rates["hit_rate"] > 0.6
