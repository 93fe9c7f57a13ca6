"""Tests of the metrics as arithmetic, and of the summary against one request at a time."""

import statistics

import numpy as np
import pandas as pd
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from erlab.results import metrics

S, MS = 10**9, 10**6


def requests(*rows):
    common = dict(run_id="r", system="A", source="measured", users=1, status="ok")
    return synthetic.from_rows([common | row for row in rows]).requests


def test_time_to_first_token_is_first_response_minus_submission():
    assert metrics.ttft(requests(dict(t_submit=100 * S, t_first=110 * S))).item() == 10


def test_time_per_output_token_counts_the_gaps_between_tokens():
    row = dict(t_submit=0, t_first=100 * MS, t_last=180 * MS, output_tokens=5)
    assert metrics.tpot(requests(row)).item() == 20  # 80 ms in 4 gaps


@pytest.mark.parametrize("tokens", [0, 1, None])
def test_time_per_output_token_is_undefined_below_two_tokens(tokens):
    assert metrics.tpot(requests(dict(t_submit=0, t_first=5, t_last=9, output_tokens=tokens))).isna().item()


def test_response_time_and_routing_time():
    found = requests(dict(t_submit=2 * S, t_routed=2 * S + 3 * MS, t_first=3 * S, t_last=7 * S))
    assert metrics.e2e(found).item() == 5
    assert metrics.routing(found).item() == 3


def test_failed_requests_and_unknown_times_have_no_latency():
    found = requests(
        dict(t_submit=0, t_first=1, t_last=2, output_tokens=3, status="timeout"), dict(t_submit=0, output_tokens=3)
    )
    for metric in (metrics.ttft, metrics.tpot, metrics.e2e, metrics.routing):
        assert metric(found).isna().all()


def test_throughput_is_tokens_of_finished_requests_over_first_submission_to_last_completion():
    found = requests(
        dict(t_submit=1 * S, t_last=3 * S, output_tokens=30),
        dict(t_submit=2 * S, t_last=6 * S, output_tokens=20),
        dict(t_submit=0, t_last=9 * S, output_tokens=400, status="timeout"),  # its submission counts in measured time
    )
    assert metrics.measured_seconds(found) == 6
    assert metrics.output_throughput(found) == pytest.approx(50 / 6)
    assert metrics.request_throughput(found) == pytest.approx(2 / 6)


def test_throughput_of_several_runs_adds_their_times():
    found = requests(
        dict(run_id="a", t_submit=0, t_last=2 * S, output_tokens=10),
        dict(run_id="b", t_submit=5 * S, t_last=9 * S, output_tokens=50),
    )
    assert metrics.output_throughput(found) == pytest.approx(60 / 6)


def test_throughput_is_unknown_without_tokens_or_times():
    assert pd.isna(metrics.output_throughput(requests(dict(t_submit=0, t_last=S))))
    assert pd.isna(metrics.output_throughput(requests(dict(t_submit=0, output_tokens=3))))
    assert pd.isna(metrics.output_throughput(requests(dict(t_submit=0, t_last=S, output_tokens=3, status="lost"))))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(0, 100))
def test_percentiles_interpolate_linearly(values, q):
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    low, high = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
    assert metrics.percentile([*values, None], q) == pytest.approx(low + (place - int(place)) * (high - low), abs=1e-6)


def test_percentile_of_no_values_is_unknown():
    assert pd.isna(metrics.percentile([None, pd.NA], 50))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.floats(0, 0.5))
def test_summary_agrees_with_one_request_at_a_time(seed, failing):
    found = synthetic.make("AD", (1, 4), seed=seed, failing=failing)
    table = metrics.summarise(found.requests)
    rows = found.requests.to_dict("records")
    assert table["requests"].sum() == len(rows)
    for cell in table.to_dict("records"):
        cell_rows = [r for r in rows if (r["system"], r["users"]) == (cell["system"], cell["users"])]
        good = [r for r in cell_rows if r["status"] == "ok"]
        assert cell["failed"] == len(cell_rows) - len(good)
        if not good:
            assert pd.isna(cell["ttft_median_s"]) and pd.isna(cell["output_throughput"])
            continue
        ttft = [(r["t_first"] - r["t_submit"]) / 1e9 for r in good]
        tpot = [(r["t_last"] - r["t_first"]) / 1e6 / (r["output_tokens"] - 1) for r in good if r["output_tokens"] > 1]
        assert cell["ttft_median_s"] == pytest.approx(statistics.median(ttft))
        assert cell["ttft_min_s"] == pytest.approx(min(ttft))
        assert cell["ttft_p95_s"] == pytest.approx(np.percentile(ttft, 95))
        assert cell["tpot_median_ms"] == pytest.approx(statistics.median(tpot))
        span = max(r["t_last"] for r in good) - min(r["t_submit"] for r in cell_rows)
        assert cell["output_throughput"] == pytest.approx(sum(r["output_tokens"] for r in good) / span * 1e9)
        assert pd.isna(cell["routing_median_ms"]) == (cell["system"] == "A")


def test_summary_separates_measured_and_simulated():
    found = synthetic.both(synthetic.make("A", (1,)), synthetic.make("A", (1,), source="simulated"))
    assert list(metrics.summarise(found.requests)["source"]) == ["measured", "simulated"]


def test_summary_of_no_requests_has_no_rows():
    assert len(metrics.summarise(requests().iloc[:0])) == 0
