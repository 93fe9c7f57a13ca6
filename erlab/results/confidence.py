"""How sure a number is that was computed from requests: its bootstrap over repeated runs and over requests.

A bootstrap draws as many requests as there were, with replacement, and computes the number again. That knows the chance
in which requests were asked, not what differs from one run to the next. Where runs were repeated (simulated ones, with
a seed each), whole repetitions are drawn first and then as many requests out of those: the k-th run of every system
and load is one repetition, since a seed gives all systems the same users. The two levels together are rather too wide
than too narrow where repetitions differ by their requests alone, and too narrow by sqrt(1 - 1/n) where n repetitions
differ by nothing else. Neither level knows how wrong a simulation is, nor what an assumption is worth.

>>> times = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
>>> (drawn,) = quantiles(times, [0.5], repetitions(1, 1000, seed=0), np.random.default_rng(0))
>>> bool(drawn.min() >= 1 and drawn.max() <= 100 and np.median(drawn) == 3)
True
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from erlab.results import metrics

RESAMPLES, LEVEL = 200, 0.95
_GROUPS = 500  # a ratio of sums is resampled by this many groups of requests at most
_TIMES = {
    "ttft_{}_s": metrics.ttft,
    "tpot_{}_ms": metrics.tpot,
    "e2e_{}_s": metrics.e2e,
    "routing_{}_ms": metrics.routing,
}
_QUANTILES = {"min": 0.0, "median": 0.5}


def repetitions(count: int, resamples: int, seed: int) -> np.ndarray:
    """Which of `count` repetitions each resample draws, an array (resamples, count): the same for all cells."""
    return np.random.default_rng([seed, count]).integers(0, count, (resamples, count))


def timed(requests: pd.DataFrame) -> pd.DataFrame:
    """What `resample` draws from, as floats: each request's times as `metrics.summarise` names them, less the quantile,
    and its output tokens; NaN where unknown. Worked out for all cells at once, since pandas is slow for few rows."""
    columns = {name: metric(requests) for name, metric in _TIMES.items()} | {"output_tokens": requests["output_tokens"]}
    floats = {name: values.to_numpy(float, na_value=np.nan) for name, values in columns.items()}
    return pd.DataFrame(floats, requests.index)


def resample(requests: pd.DataFrame, throughputs: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> dict:
    """A cell's minima, medians and output throughput as `metrics.summarise` names them: arrays, a value a resample.

    `requests` are the cell's of `timed` with a column repeat (`repeats`), `throughputs` are each repetition's, `drawn` is
    `repetitions`'. A throughput is the product of the requests in flight, which are kept, and of tokens per second of
    waiting, which are resampled.
    """
    found, repeat = {}, requests["repeat"].to_numpy()
    for name in _TIMES:
        values = requests[name].to_numpy()
        known = ~np.isnan(values)
        drawings = quantiles(values[known], list(_QUANTILES.values()), drawn, rng, repeat[known])
        found |= zip(map(name.format, _QUANTILES), drawings)
    tokens, waits = requests["output_tokens"].to_numpy(), requests["e2e_{}_s"].to_numpy()
    return found | {"output_throughput": _throughput(tokens, waits, repeat, throughputs, drawn, rng)}


def quantiles(
    values: np.ndarray, qs: Sequence[float], drawn: np.ndarray, rng: np.random.Generator, repeat: np.ndarray | None = None
) -> np.ndarray:
    """Quantiles (rows; numpy's linear interpolation) of each bootstrap sample of `values` (columns); NaN of nothing.

    `repeat` says which repetition each value is of (None: there is one). Only ranks are drawn: the r-th smallest of n
    draws from sorted values lies at n times a Beta(r, n - r + 1). A repetition that was drawn twice counts twice.
    """
    order = np.argsort(values)
    ordered, repeat = values[order], np.zeros(len(values), int) if repeat is None else repeat[order]
    times = np.stack([(drawn == r).sum(axis=1) for r in range(drawn.shape[1])], axis=1)
    sizes = times @ np.bincount(repeat, minlength=drawn.shape[1])
    n = np.maximum(sizes, 1)
    place = np.multiply.outer(qs, n - 1)
    rank = place.astype(int) + 1
    at = rng.beta(rank, n - rank + 1)
    # the next larger draw, given this one
    above = np.where(rank < n, 1 - (1 - at) * rng.uniform(size=at.shape) ** (1 / np.maximum(n - rank, 1)), at)
    ranks = np.minimum((n * np.stack([at, above])).astype(int), n - 1)
    found = np.full(ranks.shape, np.nan)
    mixes, mix_of = np.unique(times, axis=0, return_inverse=True)
    for i, mix in enumerate(mixes):
        which = np.flatnonzero(mix_of.ravel() == i)
        if sizes[which[0]]:
            upto = np.cumsum(mix[repeat])  # how many values of the sample lie up to each of the ordered ones
            found[..., which] = ordered[np.searchsorted(upto, ranks[..., which], side="right")]
    return found[0] + (found[1] - found[0]) * (place - (rank - 1))


def _throughput(tokens, waits, repeat, throughputs, drawn, rng) -> np.ndarray:
    """Tokens a second in each bootstrap sample: that of the drawn repetitions as they were, times what drawing their
    requests anew changes in tokens per second of waiting."""
    known = ~(np.isnan(tokens) | np.isnan(waits))
    pair, repeat = np.stack([tokens[known], waits[known]]), repeat[known]
    counts = np.bincount(repeat, minlength=drawn.shape[1])
    if not counts.all() or not pair.sum(axis=1).all():
        return np.full(len(drawn), np.nan)
    groups = min(max(1, _GROUPS // len(counts)), counts.min())  # of each repetition: a sum is drawn by groups
    sums = np.zeros((2, len(counts), groups))
    for r in range(len(counts)):
        mine = pair[:, repeat == r]
        sums[:, r] = [np.bincount(np.arange(counts[r]) % groups, row) for row in mine]
    at = rng.integers(0, groups, (*drawn.shape, groups))
    new = sums[:, drawn[..., None], at].sum(axis=(2, 3))
    whole = sums.sum(axis=2)
    kept = whole[:, drawn].sum(axis=2)
    seconds = (whole[0] / throughputs)[drawn].sum(axis=1)
    return kept[0] / seconds * (new[0] / new[1]) / (kept[0] / kept[1])


def repeats(requests: pd.DataFrame) -> pd.Series:
    """Which repetition each request belongs to: its run's place, from 0, among the runs of its cell."""
    run = requests.groupby([*metrics.CELL, "run_id"], dropna=False).ngroup()
    return run - run.groupby(requests.groupby(metrics.CELL, dropna=False).ngroup()).transform("min")


def bands(pooled: pd.DataFrame, runs: pd.DataFrame, column: str, cells: list[str]) -> pd.DataFrame:
    """The 95 % confidence band of a column of `metrics.summarise` over repeated runs: a row a cell with more than one.

    `pooled` is summarised by `cells`, `runs` by these and run_id. Columns `cells`, low and high: the cell's value times
    exp(-+t s / sqrt(n)), where s is the standard deviation of its n runs' logarithms and t Student's. Values are
    positive and axes logarithmic, hence the logarithm.
    """
    logs = np.log(pd.to_numeric(runs[column], errors="coerce").astype(float).where(lambda v: v > 0))
    spread = runs[cells].assign(log=logs).groupby(cells, dropna=False)["log"].agg(["std", "count"]).reset_index()
    table = pooled[[*cells, column]].merge(spread[spread["count"] > 1], on=cells)
    n = table["count"].to_numpy(float)
    factor = np.exp(stdtrit(n - 1, (1 + LEVEL) / 2) * table["std"].to_numpy(float) / np.sqrt(n))
    value = table[column].astype(float)
    return table[cells].assign(low=value / factor, high=value * factor)
