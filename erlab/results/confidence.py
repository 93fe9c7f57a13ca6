"""Bootstrap confidence intervals of metrics, over repeated runs and over requests.

A bootstrap sample draws as many requests as there are, with replacement, and computes the metric again. It covers the
variation between requests, not the variation between runs. Where runs are repeated (simulated ones, each with its own
seed), whole repetitions are drawn first, then as many requests from them. The k-th run of every system and load is one
repetition, since a seed gives all systems the same users. The resulting interval is slightly too wide where repetitions
differ only by their requests, and too narrow by sqrt(1 - 1/n) where the variation between n repetitions dominates that
between requests. It covers neither the error of a simulation nor that of an assumption.

>>> times = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
>>> (drawn,) = quantiles(times, [0.5], repetitions(1, 1000, seed=0), np.random.default_rng(0))
>>> bool(drawn.min() >= 1 and drawn.max() <= 100 and np.median(drawn) == 3)
True
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from erlab.results import metrics

RESAMPLES, LEVEL = 200, 0.95
_GROUPS = 500  # a ratio of sums is resampled from at most this many groups of requests
_TIMES = {
    "ttft_{}_s": metrics.ttft,
    "tpot_{}_ms": metrics.tpot,
    "e2e_{}_s": metrics.e2e,
    "routing_{}_ms": metrics.routing,
}
_QUANTILES = {"min": 0.0, "median": 0.5}


def repetitions(count: int, resamples: int, seed: int) -> np.ndarray:
    """Draw the repetitions of each bootstrap sample, shape (resamples, count).

    They are the same for all cells.
    """
    return np.random.default_rng([seed, count]).integers(0, count, (resamples, count))


def timed(requests: pd.DataFrame) -> pd.DataFrame:
    """Compute the per-request values that `resample` draws from.

    Returns:
        One row per request: times, named as in `metrics.summarise` without the quantile, and output tokens, as floats;
        NaN is unknown.
    """
    columns = {name: metric(requests) for name, metric in _TIMES.items()} | {"output_tokens": requests["output_tokens"]}
    floats = {name: values.to_numpy(float, na_value=np.nan) for name, values in columns.items()}
    return pd.DataFrame(floats, requests.index)


def resample(requests: pd.DataFrame, throughputs: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> dict:
    """Draw bootstrap samples of a cell's minima, medians and output throughput.

    Throughput is the product of the requests in flight, which are kept, and of tokens per second of response time,
    which are resampled.

    Args:
        requests: Rows of `timed` of the cell, with the column `repeat` of `repeats`.
        throughputs: Output throughput of each repetition, shape (repetitions,).
        drawn: Result of `repetitions`, shape (resamples, repetitions).

    Returns:
        Arrays of shape (resamples,), named as in `metrics.summarise`.
    """
    samples, repeat = {}, requests["repeat"].to_numpy()
    for name in _TIMES:
        values = requests[name].to_numpy()
        known = ~np.isnan(values)
        sampled = quantiles(values[known], list(_QUANTILES.values()), drawn, rng, repeat[known])
        samples |= zip(map(name.format, _QUANTILES), sampled)
    tokens, waits = requests["output_tokens"].to_numpy(), requests["e2e_{}_s"].to_numpy()
    return samples | {"output_throughput": _throughput(tokens, waits, repeat, throughputs, drawn, rng)}


def quantiles(
    values: np.ndarray,
    qs: Sequence[float],
    drawn: np.ndarray,
    rng: np.random.Generator,
    repeat: np.ndarray | None = None,
) -> np.ndarray:
    """Draw bootstrap samples of quantiles, interpolated linearly like numpy.

    Only ranks are drawn: the r-th smallest of n draws from sorted values lies at n times a Beta(r, n - r + 1). A
    repetition that is drawn twice counts twice.

    Args:
        values: Values without NaN, shape (n,).
        qs: Quantiles, in [0, 1].
        drawn: Result of `repetitions`, shape (resamples, repetitions).
        repeat: Repetition of each value, shape (n,); None for a single repetition.

    Returns:
        Shape (quantiles, resamples); NaN for a sample without values.
    """
    order = np.argsort(values)
    ordered, repeat = values[order], np.zeros(len(values), int) if repeat is None else repeat[order]
    times = np.stack([(drawn == r).sum(axis=1) for r in range(drawn.shape[1])], axis=1)
    sizes = times @ np.bincount(repeat, minlength=drawn.shape[1])
    n = np.maximum(sizes, 1)
    place = np.multiply.outer(qs, n - 1)
    rank = place.astype(int) + 1
    at = rng.beta(rank, n - rank + 1)
    # the next larger draw, conditional on this one
    above = np.where(rank < n, 1 - (1 - at) * rng.uniform(size=at.shape) ** (1 / np.maximum(n - rank, 1)), at)
    ranks = np.minimum((n * np.stack([at, above])).astype(int), n - 1)
    neighbours = np.full(ranks.shape, np.nan)
    mixes, mix_of = np.unique(times, axis=0, return_inverse=True)
    for i, mix in enumerate(mixes):
        which = np.flatnonzero(mix_of.ravel() == i)
        if sizes[which[0]]:
            upto = np.cumsum(mix[repeat])  # number of values of the sample up to each ordered value
            neighbours[..., which] = ordered[np.searchsorted(upto, ranks[..., which], side="right")]
    return neighbours[0] + (neighbours[1] - neighbours[0]) * (place - (rank - 1))


def _throughput(tokens, waits, repeat, throughputs, drawn, rng) -> np.ndarray:
    """Draw bootstrap samples of output throughput.

    A sample is the throughput of the drawn repetitions, times the change of tokens per second of response time that
    resampling their requests makes.
    """
    known = ~(np.isnan(tokens) | np.isnan(waits))
    pair, repeat = np.stack([tokens[known], waits[known]]), repeat[known]
    counts = np.bincount(repeat, minlength=drawn.shape[1])
    if not counts.all() or not pair.sum(axis=1).all():
        return np.full(len(drawn), np.nan)
    groups = min(max(1, _GROUPS // len(counts)), counts.min())  # per repetition; sums are drawn by group
    sums = np.zeros((2, len(counts), groups))
    for r in range(len(counts)):
        sums[:, r] = [np.bincount(np.arange(counts[r]) % groups, row) for row in pair[:, repeat == r]]
    at = rng.integers(0, groups, (*drawn.shape, groups))
    new = sums[:, drawn[..., None], at].sum(axis=(2, 3))
    whole = sums.sum(axis=2)
    observed = whole[:, drawn].sum(axis=2)
    seconds = (whole[0] / throughputs)[drawn].sum(axis=1)
    return observed[0] / seconds * (new[0] / new[1]) / (observed[0] / observed[1])


def repeats(requests: pd.DataFrame) -> pd.Series:
    """Return the index of each request's run within its cell."""
    run = requests.groupby([*metrics.CELL, "run_id"], dropna=False).ngroup()
    return run - run.groupby(requests.groupby(metrics.CELL, dropna=False).ngroup()).transform("min")


def bands(pooled: pd.DataFrame, runs: pd.DataFrame, column: str, cells: list[str]) -> pd.DataFrame:
    """Compute the 95 % confidence band over repeated runs.

    The band is the cell's value times exp(∓ t s / sqrt(n)), with s the standard deviation of the logarithms of its n
    runs and t of Student's distribution. Logarithms are used since values are positive and axes logarithmic.

    Args:
        pooled: `metrics.summarise` by `cells`.
        runs: `metrics.summarise` by `cells` and run_id.

    Returns:
        One row per cell with more than one run: `cells`, low and high.
    """
    from scipy.special import stdtrit  # slow to import, and needed here alone

    logs = np.log(pd.to_numeric(runs[column], errors="coerce").astype(float).where(lambda v: v > 0))
    spread = runs[cells].assign(log=logs).groupby(cells, dropna=False)["log"].agg(["std", "count"]).reset_index()
    table = pooled[[*cells, column]].merge(spread[spread["count"] > 1], on=cells)
    n = table["count"].to_numpy(float)
    factor = np.exp(stdtrit(n - 1, (1 + LEVEL) / 2) * table["std"].to_numpy(float) / np.sqrt(n))
    value = table[column].astype(float)
    return table[cells].assign(low=value / factor, high=value * factor)
