"""Tests of the bootstrap against explicit resampling, and of the band over runs against Student's interval."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats

from erlab.results import confidence, metrics


@pytest.mark.parametrize("n", [1, 2, 7, 8, 41])
@pytest.mark.parametrize("q", [0.0, 0.5, 0.9])
def test_quantiles_have_the_distribution_of_explicit_samples(n, q):
    values = np.random.default_rng(n).lognormal(size=n)
    (quick,) = confidence.quantiles(values, [q], confidence.repetitions(1, 4000, seed=0), np.random.default_rng(1))
    drawn = np.random.default_rng(2).choice(values, (4000, n))
    slow = np.quantile(drawn, q, axis=1)
    assert stats.ks_2samp(quick.round(9), slow.round(9)).statistic < 0.045  # 1.63 sqrt(2 / 4000) is 0.036 (1 %)


@pytest.mark.parametrize("q", [0.0, 0.5])
def test_quantiles_of_repetitions_have_the_distribution_of_explicit_samples(q):
    rng = np.random.default_rng(3)
    parts = [rng.lognormal(mean=0.4 * r, size=size) for r, size in enumerate((9, 14, 9))]  # repetitions that differ
    values, repeat = np.concatenate(parts), np.repeat(range(3), [len(part) for part in parts])
    drawn = confidence.repetitions(3, 4000, seed=0)
    (quick,) = confidence.quantiles(values, [q], drawn, np.random.default_rng(1), repeat)
    slow = []
    for _ in range(4000):
        pool = np.concatenate([parts[r] for r in rng.integers(0, 3, 3)])
        slow.append(np.quantile(rng.choice(pool, len(pool)), q))
    assert stats.ks_2samp(quick.round(9), np.round(slow, 9)).statistic < 0.045


def timed(requests):
    """Return the requests of a cell as `confidence.resample` takes them."""
    return confidence.timed(requests).assign(repeat=confidence.repeats(requests))


def test_throughput_is_that_of_the_drawn_repetitions_together():
    """With equal requests in each repetition, only the drawn repetitions change the throughput of a sample."""
    rows = [
        dict(run_id=f"r{r}", paper="v2", system="A", source="simulated", users=1, status="ok", t_submit=0,
             t_first=1, t_last=10**9, output_tokens=tokens)
        for r, tokens in enumerate((10, 40)) for _ in range(50)
    ]  # fmt: skip
    found = synthetic.from_rows(rows).requests
    drawn = confidence.repetitions(2, 400, seed=0)
    rates = np.array([100.0, 800.0])  # 500 tokens in 5 s, 2,000 in 2.5 s
    samples = confidence.resample(timed(found), rates, drawn, np.random.default_rng(0))
    expected = {0: 1000 / 10, 1: 2500 / 7.5, 2: 4000 / 5}  # by the number of draws of the second repetition
    assert samples["output_throughput"] == pytest.approx([expected[n] for n in drawn.sum(axis=1)])


def test_repetitions_are_the_same_for_every_cell():
    drawn = confidence.repetitions(5, 200, seed=1)
    assert (drawn == confidence.repetitions(5, 200, seed=1)).all() and drawn.min() == 0 and drawn.max() == 4


def test_throughput_resamples_tokens_and_response_times_together():
    found = synthetic.make("C", (16,), failing=0.05).requests
    once = confidence.repetitions(1, 3000, seed=0)
    drawn = confidence.resample(timed(found), np.array([1000.0]), once, np.random.default_rng(0))["output_throughput"]
    ended = found[metrics.finished(found)]
    tokens, waits = ended.output_tokens.to_numpy(float), metrics.e2e(ended).to_numpy(float)
    at = np.random.default_rng(1).integers(0, len(ended), (3000, len(ended)))
    slow = 1000 * (tokens[at].sum(axis=1) / waits[at].sum(axis=1)) / (tokens.sum() / waits.sum())
    assert drawn.mean() == pytest.approx(slow.mean(), rel=0.01) and drawn.std() == pytest.approx(slow.std(), rel=0.1)


def test_unknown_values_stay_unknown():
    found = synthetic.make("C", (2,)).requests
    found["output_tokens"] = pd.array([pd.NA] * len(found), dtype="Int64")
    once = confidence.repetitions(1, 5, seed=0)
    drawn = confidence.resample(timed(found), np.array([math.nan]), once, np.random.default_rng(0))
    assert np.isnan(drawn["output_throughput"]).all() and np.isnan(drawn["routing_median_ms"]).all()
    assert not np.isnan(drawn["ttft_median_s"]).any()


def test_band_is_students_interval_of_the_logarithms_of_runs():
    parts = [synthetic.make("C", (4,), seed=seed) for seed in range(4)]
    found, cell = synthetic.both(*parts, synthetic.make("D", (4,))), ["system", "users"]
    runs = metrics.summarise(found.requests, [*cell, "run_id"])
    band = confidence.bands(metrics.summarise(found.requests, cell), runs, "e2e_median_s", cell)
    assert band["system"].tolist() == ["C"]  # D has one run
    logs = np.log([metrics.percentile(metrics.e2e(part.requests), 50) for part in parts])
    low, high = stats.t.interval(0.95, 3, loc=0, scale=stats.sem(logs))
    middle = metrics.percentile(metrics.e2e(found.requests[found.requests.system == "C"]), 50)
    assert band["low"].item() == pytest.approx(middle * math.exp(low))
    assert band["high"].item() == pytest.approx(middle * math.exp(high))


def test_repetitions_are_numbered_within_their_cell():
    found = synthetic.both(synthetic.make("A", (1, 2), seed=0), synthetic.make("A", (2,), seed=1)).requests
    places = confidence.repeats(found).groupby([found.users, found.run_id]).first()
    assert places.tolist() == [0, 0, 1]
