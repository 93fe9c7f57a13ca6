"""A day of arrivals: the synthetic day by its rates, metrics over time by arithmetic, D's imbalance by its queue."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from erlab import paper
from erlab.experiments import day
from erlab.figures.simulation import PLOTS
from erlab.prompts import traffic
from erlab.simulation import Setup

ROOF = Setup(steps="roofline", era=None)


def test_the_synthetic_day_has_nights_and_bursts():
    requests = day.synthetic(seed=1, seconds=2400)
    assert len(requests.user) == pytest.approx(day.MEAN_RATE * 2400, rel=0.03)
    hours = requests.at / requests.at[-1] * 24
    night, afternoon = (np.abs(hours - hour) < 2 for hour in (4, 16))
    assert afternoon.sum() > 2.5 * night.sum()
    per_5s = np.bincount((requests.at / 5).astype(int))
    assert per_5s.max() > per_5s.mean() + 6 * np.sqrt(per_5s.mean())  # a Poisson process would stay below
    assert (day.synthetic(1, 2400).at == requests.at).all() and len(day.synthetic(2, 2400).at) != len(requests.at)


def test_a_trace_is_read_and_compressed(tmp_path):
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,50,5\n40,60,6\n")
    load = day.load(tmp_path / "t.csv", speed=10)
    assert load.requests.at.tolist() == [0, 4] and (load.speed, load.title) == (10, "t.csv, 10 times the speed")
    assert day.load(tmp_path / "t.csv").requests.at.tolist() == [0, 40] and day.load().speed == 144


def test_metrics_over_time_by_arithmetic():
    """A request each second in one hour of the trace; every fourth waits 10 s, and its expert has the queue."""
    n = 4800
    submitted = np.arange(n) * 10**9
    slow = np.arange(n) % 4 == 0
    requests = pd.DataFrame(
        {"t_submit": submitted, "t_first": submitted + np.where(slow, 10 * 10**9, 1), "status": "ok", "run_id": "r"}
    )
    requests = requests.assign(t_last=requests["t_first"], output_tokens=1, expert=np.where(slow, "slow", "fast"))
    requests = requests.convert_dtypes()
    load = day.Day(traffic.open_loop([0], [1], [1]), 0.75, "test")
    table = day.over_time(load, {("D", "router"): requests})
    assert len(table) == day.WINDOWS and table["hour"].is_monotonic_increasing
    assert table["hour"].iloc[-1] == pytest.approx(1, rel=0.02)
    assert table["arrivals"].mean() == pytest.approx(1, rel=0.01) and set(table["within"].round(2)) == {0.75}
    assert set(table["longest_queue"]) == {3} and set(table["waiting"]) <= {3, 4}
    row = day.summary({("D", "router"): requests}).iloc[0]
    assert row["largest expert"] == 0.75 and row["within"] == 0.75 and row["ttft_p99_s"] == 10


def test_imbalance_and_bursts_meet_in_one_queue():
    load = day.Day(day.synthetic(0, 300), 288, "test")
    skewed = [SimpleNamespace(cluster=c, order=tuple(range(8)), distance=0.1, margin=0.1) for c in (0, 0, 0, 0, 1, 2, 3, 4)]
    systems = {name: paper.SYSTEMS["v2"][name] for name in "AD"}
    runs = day.simulate(load, ROOF, skewed, systems)
    assert list(runs) == [("A", ""), ("D", "router"), ("D", "even")]
    submitted = [requests["t_submit"].tolist() for requests in runs.values()]
    assert submitted[0] == submitted[1] == submitted[2]
    table = day.over_time(load, runs)
    most = table.groupby("routing")["longest_queue"].max()
    assert most["router"] > 4 * most["even"]
    assert PLOTS["day"](table)
