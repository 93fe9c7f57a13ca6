"""The bootstrap against drawing requests one by one, and the band over runs against the textbook's interval."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats

from erlab import confidence, metrics


@pytest.mark.parametrize("n", [1, 2, 7, 8, 41])
@pytest.mark.parametrize("q", [0.0, 0.5, 0.9])
def test_quantiles_are_distributed_as_those_of_drawn_samples(n, q):
    values = np.random.default_rng(n).lognormal(size=n)
    quick = confidence.quantiles(values, q, 4000, np.random.default_rng(1))
    drawn = np.random.default_rng(2).choice(values, (4000, n))
    slow = np.quantile(drawn, q, axis=1)
    assert stats.ks_2samp(quick.round(9), slow.round(9)).statistic < 0.045  # 1.63 sqrt(2 / 4000) is 0.036 (1 %)


def test_throughput_resamples_tokens_and_waiting_together():
    found = synthetic.make("C", (16,), failing=0.05).requests
    drawn = confidence.resample(found, 1000.0, 3000, np.random.default_rng(0))["output_throughput"]
    ended = found[metrics.finished(found)]
    tokens, waits = ended.output_tokens.to_numpy(float), metrics.e2e(ended).to_numpy(float)
    at = np.random.default_rng(1).integers(0, len(ended), (3000, len(ended)))
    slow = 1000 * (tokens[at].sum(axis=1) / waits[at].sum(axis=1)) / (tokens.sum() / waits.sum())
    assert drawn.mean() == pytest.approx(slow.mean(), rel=0.01) and drawn.std() == pytest.approx(slow.std(), rel=0.1)


def test_unknown_values_stay_unknown():
    found = synthetic.make("C", (2,)).requests
    found["output_tokens"] = pd.array([pd.NA] * len(found), dtype="Int64")
    drawn = confidence.resample(found, math.nan, 5, np.random.default_rng(0))
    assert np.isnan(drawn["output_throughput"]).all() and np.isnan(drawn["routing_median_ms"]).all()
    assert not np.isnan(drawn["ttft_median_s"]).any()


def test_the_band_is_students_interval_of_the_runs_logarithms():
    parts = [synthetic.make("C", (4,), seed=seed) for seed in range(4)]
    found, cell = synthetic.both(*parts, synthetic.make("D", (4,))), ["system", "users"]
    band = confidence.bands(found.requests, "e2e_median_s", cell)
    assert band["system"].tolist() == ["C"]  # D ran once
    logs = np.log([metrics.percentile(metrics.e2e(part.requests), 50) for part in parts])
    low, high = stats.t.interval(0.95, 3, loc=0, scale=stats.sem(logs))
    middle = metrics.percentile(metrics.e2e(found.requests[found.requests.system == "C"]), 50)
    assert band["low"].item() == pytest.approx(middle * math.exp(low))
    assert band["high"].item() == pytest.approx(middle * math.exp(high))


def test_repetitions_are_numbered_within_their_cell():
    found = synthetic.both(synthetic.make("A", (1, 2), seed=0), synthetic.make("A", (2,), seed=1)).requests
    places = confidence.repeats(found).groupby([found.users, found.run_id]).first()
    assert places.tolist() == [0, 0, 1]
