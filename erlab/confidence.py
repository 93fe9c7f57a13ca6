"""How sure a number is that was computed from requests: its bootstrap over requests, and its repetition by run.

A bootstrap draws as many requests as there were, with replacement, and computes the number again. It knows the chance
in which requests were asked, not what differs from one run to the next: where runs were repeated, `repeats` tells.

>>> times = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
>>> drawn = quantiles(times, 0.5, 1000, np.random.default_rng(0))
>>> bool(drawn.min() >= 1 and drawn.max() <= 100 and np.median(drawn) == 3)
True
"""

import numpy as np
import pandas as pd
from scipy import stats

from erlab import metrics

RESAMPLES, LEVEL = 200, 0.95
_GROUPS = 500  # a ratio of sums is resampled by this many groups of requests at most
_TIMES = {
    "ttft_{}_s": metrics.ttft,
    "tpot_{}_ms": metrics.tpot,
    "e2e_{}_s": metrics.e2e,
    "routing_{}_ms": metrics.routing,
}
_QUANTILES = {"min": 0.0, "median": 0.5}


def resample(requests: pd.DataFrame, throughput: float, resamples: int, rng: np.random.Generator) -> dict:
    """A cell's minima, medians and output throughput as `metrics.summarise` names them: arrays of that many resamples.

    `throughput` is the observed one. It is the product of the requests in flight, which are kept, and of tokens per
    second of waiting, which are resampled.
    """
    drawn = {}
    for name, metric in _TIMES.items():
        values = metric(requests).dropna().to_numpy(float)
        for label, q in _QUANTILES.items():
            drawn[name.format(label)] = quantiles(values, q, resamples, rng)
    ended = requests[metrics.finished(requests)]
    ratio = _ratio(ended["output_tokens"], metrics.e2e(ended), resamples, rng)
    return drawn | {"output_throughput": throughput * ratio}


def quantiles(values: np.ndarray, q: float, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The q-th quantile (numpy's linear interpolation) of each of so many bootstrap samples; NaN of nothing.

    Only ranks are drawn: the r-th smallest of n draws from the sorted values lies at n times a Beta(r, n - r + 1).
    """
    n = len(values)
    if not n:
        return np.full(resamples, np.nan)
    ordered, place = np.sort(values), (n - 1) * q
    rank, between = int(place) + 1, place - int(place)
    low = rng.beta(rank, n - rank + 1, resamples)
    found = ordered[np.minimum((n * low).astype(int), n - 1)]
    if between:
        high = 1 - (1 - low) * rng.uniform(size=resamples) ** (1 / (n - rank))  # the next larger draw, given this one
        found = (1 - between) * found + between * ordered[np.minimum((n * high).astype(int), n - 1)]
    return found


def _ratio(above: pd.Series, below: pd.Series, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Sum over sum in each bootstrap sample, as a share of the observed one."""
    known = (above.notna() & below.notna()).to_numpy(bool)
    pair = np.stack([above[known].to_numpy(float), below[known].to_numpy(float)])
    if not pair.size or not pair.sum(axis=1).all():
        return np.full(resamples, np.nan)
    groups = min(_GROUPS, pair.shape[1])
    sums = np.stack([np.bincount(np.arange(len(row)) % groups, row) for row in pair])
    drawn = sums[:, rng.integers(0, groups, (resamples, groups))].sum(axis=2)
    return (drawn[0] / drawn[1]) / (pair[0].sum() / pair[1].sum())


def repeats(requests: pd.DataFrame) -> pd.Series:
    """Which repetition each request belongs to: its run's place, from 0, among the runs of its cell."""
    runs = requests.groupby(metrics.CELL, dropna=False)["run_id"]
    return runs.rank("dense").astype(int) - 1


def bands(requests: pd.DataFrame, column: str, cells: list[str]) -> pd.DataFrame:
    """The 95 % confidence band of a column of `metrics.summarise` over repeated runs: a row a cell with more than one.

    Columns `cells`, low and high: the cell's value times exp(-+t s / sqrt(n)), where s is the standard deviation of
    its n runs' logarithms and t Student's. Values are positive and axes logarithmic, hence the logarithm.
    """
    several = requests.groupby(cells, dropna=False)["run_id"].transform("nunique") > 1
    if not several.any():
        return pd.DataFrame(columns=[*cells, "low", "high"])
    found = requests[several]
    runs = metrics.summarise(found, [*cells, "run_id"])
    logs = np.log(pd.to_numeric(runs[column], errors="coerce").astype(float).where(lambda v: v > 0))
    runs = runs.assign(log=logs).groupby(cells, dropna=False)["log"].agg(["std", "count"]).reset_index()
    pooled = metrics.summarise(found, cells)[[*cells, column]]
    table = pooled.merge(runs, on=cells)
    table = table[table["count"] > 1]
    t = stats.t.ppf((1 + LEVEL) / 2, table["count"].to_numpy() - 1)
    factor = np.exp(t * table["std"] / np.sqrt(table["count"]))
    value = table[column].astype(float)
    return table[cells].assign(low=value / factor, high=value * factor)
