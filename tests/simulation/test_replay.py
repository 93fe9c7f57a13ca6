"""Simulated loads other than the paper's: arithmetic of times, lengths and durations."""

from dataclasses import replace

import numpy as np
import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.prompts import traffic
from erlab.prompts.loads import Load
from erlab.simulation import Setup, replay, simulate
from erlab.spec import Lengths, Workload

ROOF = Setup(steps="roofline", era=None)
SHORT = Workload(Lengths(60, 0.8, 4, 400), Lengths(20, 0.7, 1, 100), turns=3)
A, D, E = (paper.SYSTEMS["v2"][k] for k in "ADE")


def load_of(at, prompt, output, **columns):
    return Load(trace=replace(traffic.open_loop(at, prompt, output), **columns))


def test_a_trace_is_submitted_at_its_times_to_any_system():
    at = [0.0, 0.5, 0.5, 3.0]
    for system in (A, D, E):
        found = replay(system, load_of(at, [50] * 4, [5] * 4), setup=ROOF)
        assert (found.requests["t_submit"] / 1e9).tolist() == at
        assert found.runs["load"].item() == {"kind": "trace", "cut": 0}
        assert found.runs["run_id"].item() == found.requests["run_id"].unique().item()


def test_a_turn_waits_for_the_answer_its_pause_and_its_time():
    at, n = np.array([0.0, 0.0, 9.0, 0.0]), 4
    load = traffic.Traffic(np.zeros(n, int), np.arange(n), *np.full((2, n), 9), at, np.array([0.0, 2.0, 0.0, 0.25]))
    found = simulate(E, traffic=load, setup=ROOF).requests
    answers, submitted = found["t_last"].to_numpy(), found["t_submit"].to_numpy()
    assert submitted.tolist() == [0, answers[0] + 2 * 10**9, 9 * 10**9, answers[2] + 250_000_000]


def test_closed_loop_users_go_on_until_the_end():
    found = replay(E, Load(duration=20), 3, workload=SHORT, setup=ROOF).requests
    assert found["t_submit"].max() < 20 * 10**9 and found.groupby("user")["t_last"].max().min() > 19 * 10**9
    assert (found["t_submit"] == found["t_last"].shift())[found["turn"] > 0].all()
    assert (found["turn"] == found.groupby("user").cumcount()).all()


def test_warm_up_requests_are_simulated_and_not_recorded():
    whole = replay(E, Load(rate=20, duration=12), workload=SHORT, setup=ROOF).requests
    part = replay(E, Load(rate=20, duration=10, warmup=2), workload=SHORT, setup=ROOF).requests
    kept = whole[whole["t_submit"] >= 2 * 10**9]
    assert 0 < len(part) == len(kept) < len(whole) and part["t_last"].tolist() == kept["t_last"].tolist()


def test_a_load_within_the_papers_lengths_changes_nothing():
    drawn = Load(rate=30).traffic(paper.WORKLOAD, seed=4)
    found = replay(D, Load(rate=30), setup=ROOF, seed=4)
    expected = simulate(D, traffic=drawn, setup=ROOF, seed=4)
    columns = ["t_submit", "t_first", "t_last", "expert"]
    assert found.requests[columns].equals(expected.requests[columns])
    assert found.runs["setup"].item() == expected.runs["setup"].item()


def test_longer_requests_widen_the_system_up_to_its_model_and_pool():
    load = load_of([0.0, 1.0], [6000, 60_000], [100, 200])
    found = replay(E, load, setup=ROOF)
    assert found.requests["input_tokens"].tolist() == [6000, 8192 - 200] and found.runs["load"].item()["cut"] == 1
    longer = replay(E, load, setup=ROOF, context=32768)
    assert longer.requests["input_tokens"].tolist() == [6000, 32768 - 200]
    assert longer.runs["setup"].item()["batching"]["chunked_context"]
    pool = ROOF.pool(D.expert) // 64 * 64
    assert replay(D, load, setup=ROOF, context=32768).requests["input_tokens"].max() == min(pool, 32768) - 200
    with pytest.raises(ErlabError, match="'context' .* be from 2048 to 32768"):
        replay(E, load, setup=ROOF, context=100_000)
