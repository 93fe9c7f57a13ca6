"""Loads: rates by their distributions, think times, durations and prompts of wanted lengths by arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from erlab.errors import ErlabError
from erlab.prompts import datasets, loads, traffic
from erlab.prompts.loads import Load
from erlab.spec import Lengths, Workload

SHORT = Workload(Lengths(60, 0.8, 4, 400), Lengths(20, 0.7, 1, 100), turns=3)


def test_poisson_arrivals_are_a_poisson_process():
    times = traffic.poisson(20.0, 5000, seed=1)
    gaps = np.diff(times, prepend=0.0)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 20)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.05
    assert (traffic.poisson(20.0, 5000, seed=1) == times).all() and (traffic.poisson(20.0, 5000, seed=2) != times).all()


def test_think_times_are_exponential():
    load = Load(think=0.5).traffic(replace(SHORT, turns=500), users=10, seed=3)
    assert stats.kstest(load.pauses, "expon", args=(0, 0.5)).pvalue > 0.01
    plain = Load().traffic(replace(SHORT, turns=500), users=10, seed=3)
    assert (load.input_tokens == plain.input_tokens).all() and (plain.pauses == 0).all()


def test_a_rate_has_as_many_requests_as_its_duration_or_as_wanted():
    for load, count in (
        (Load(rate=5), 300),  # a minute
        (Load(rate=5, duration=10, warmup=2), 60),
        (Load(constant_rate=4, requests=9), 9),
    ):
        drawn = load.traffic(SHORT, seed=1)
        assert len(drawn.user) == drawn.users == count
    assert Load(constant_rate=4, requests=3).traffic(SHORT).at.tolist() == [0, 0.25, 0.5]


def test_requests_are_shared_out_among_users():
    drawn = Load(requests=10).traffic(SHORT, users=4, seed=0)
    assert np.bincount(drawn.user).tolist() == [3, 3, 2, 2]
    assert Load(duration=7, warmup=2).traffic(SHORT, users=4).until == 9


TRACE = traffic.Traffic(
    np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([1000, 30, 10]), np.array([4, 400, 1]), np.array([0.0, 8.0, 2.0])
)


def test_a_trace_is_replayed_in_part_and_faster():
    load = Load(trace=TRACE, duration=5)
    assert load.traffic(SHORT).at.tolist() == [0, 2] and load.traffic(SHORT).user.tolist() == [0, 1]
    assert Load(trace=TRACE, requests=2).traffic(SHORT).at.tolist() == [0, 2]
    assert traffic.faster(TRACE, 4).at.tolist() == [0, 2, 0.5]
    assert traffic.resized(TRACE, 0.1).input_tokens.tolist() == [100, 3, 1]


def test_requests_that_are_too_long_are_cut():
    cut = traffic.cut(TRACE, 100)
    assert list(zip(cut.input_tokens, cut.output_tokens)) == [(96, 4), (30, 50), (10, 1)]
    cut = traffic.cut(TRACE, 100, 50, 10)
    assert list(zip(cut.input_tokens, cut.output_tokens)) == [(50, 4), (30, 10), (10, 1)]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: Load(rate=1, constant_rate=1), "--constant-rate must not stand beside --rate"),
        (lambda: Load(rate=1, think=1), "--think is for a closed loop"),
        (lambda: Load(requests=5, duration=1), "--requests must not stand beside --duration"),
        (lambda: Load(rate=0.001), "--duration must leave 1 to 10,000,000 requests"),
        (lambda: Load(requests=3).traffic(SHORT, users=4), "--requests must be at least the 4 users. Got 3"),
        (lambda: loads.counted(Load(warmup=5), np.array([0, 10**9])), "--warmup must end before the last"),
        (lambda: Load(trace=TRACE, duration=0.0).traffic(SHORT), "leave at least one request"),
        (lambda: traffic.poisson(0, 1, 0), "'rate'"),
        (lambda: traffic.constant(-1, 1), "'rate'"),
        (lambda: traffic.faster(TRACE, 0), "'speed'"),
        (lambda: replace(TRACE, at=np.array([0, -1, 1])), "'at'"),
        (lambda: replace(TRACE, prefix=[(1,)]), "'prefix'"),
    ],
)
def test_mistakes_are_named(wrong, said):
    with pytest.raises(ErlabError, match=said):
        wrong()


@pytest.fixture(scope="module")
def prompts():
    return datasets.load(None, per_domain=20, seed=0)


def test_prompts_have_the_wanted_lengths(prompts):
    sessions = traffic.requests(prompts, TRACE, seed=1)
    assert [[len(r.text.encode()) + 1 for r in own] for own in sessions] == [[1000, 30], [10]]
    assert [[(r.input_tokens, r.max_tokens) for r in own] for own in sessions] == [[(1000, 4), (30, 400)], [(10, 1)]]
    assert traffic.requests(prompts, TRACE, seed=1) == sessions != traffic.requests(prompts, TRACE, seed=2)


def test_equal_prefix_ids_are_equal_text_in_one_domain(prompts):
    ids = [(1, 2, 3), (1, 2, 9), (1, 7, 8), (5, 6, 4)]
    n = np.arange(4)
    load = traffic.Traffic(n, n * 0, n * 0 + 200, n * 0 + 1, n * 0.0, prefix=ids, block_tokens=64)
    texts = [own[0].text.encode() for own in traffic.requests(prompts, load, seed=0)]
    for i in range(4):
        assert len(texts[i]) == 199
        for j in range(i):
            same = next((k for k in range(3) if ids[i][k] != ids[j][k]), 3)
            assert texts[i][: max(0, 64 * same - 1)] == texts[j][: max(0, 64 * same - 1)]
            assert texts[i][: 64 * (same + 1) - 1] != texts[j][: 64 * (same + 1) - 1]
    domains = [own[0].domain for own in traffic.requests(prompts, load, seed=0)]
    assert domains[0] == domains[1] == domains[2]
