"""Measures of routers on outcomes: pure functions of scores, costs and choices, with formulas and sources.

Definitions: n prompts, e experts; a score is the quality of an answer, 0 to 1, so their mean is the accuracy where
answers are right or wrong. A measure that is undefined is None.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

RESAMPLES, LEVEL = 1000, 0.95
_GROUPS = 2000  # means are resampled from at most this many groups of prompts


class Interval(NamedTuple):
    """A mean and its central 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def chosen(values: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """Return the value (n,) of each prompt's chosen expert, out of values (n, e)."""
    return values[np.arange(len(choices)), choices]


def interval(values: np.ndarray, seed: int = 0) -> Interval | None:
    """Return the mean of values (n,) and its percentile bootstrap interval over prompts; unknown values are left out.

    The interval of a difference is paired if `values` are differences per prompt. Beyond 2,000 prompts, random groups
    of prompts are resampled, which gives the same variance for independent prompts.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    rng = np.random.default_rng(seed)
    groups = np.array_split(rng.permutation(values), min(len(values), _GROUPS))
    sums, sizes = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def gap_recovered(score: float, best: float, oracle: float) -> float | None:
    """Return (score - best) / (oracle - best): the share of the gap from the best single expert to the oracle."""
    return (score - best) / (oracle - best) if oracle > best else None


def regret(scores: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """Return the regret of each prompt, (n,): the highest score of all experts minus the chosen one's."""
    return np.nanmax(scores, axis=1) - chosen(scores, choices)


def shares(choices: np.ndarray, experts: int) -> np.ndarray:
    """Return the share of prompts that each expert gets, (e,)."""
    return np.bincount(choices, minlength=experts) / len(choices)


def imbalance(share: np.ndarray) -> float:
    """Return the largest share relative to the mean over experts: 1 is an even load, e means one expert gets all."""
    return float(share.max() * len(share))


def deferral(strong: np.ndarray, weak: np.ndarray, gap: np.ndarray) -> pd.DataFrame:
    """Return the accuracy over the share of prompts sent to the strong expert, highest predicted gap first.

    Prompts of equal gap are sent in random order: in expectation, the line between the group's ends.

    Args:
        strong, weak: Scores of the two experts, (n,), known for every prompt.
        gap: Predicted advantage of the strong expert, (n,), on any scale.

    Returns:
        Columns share, from 0 to 1, and accuracy.
    """
    order = np.argsort(-gap, kind="stable")
    gained = np.cumsum((strong - weak)[order])
    ends = np.append(np.flatnonzero(np.diff(gap[order])), len(gap) - 1)  # the last prompt of each group of equal gap
    share = np.concatenate([[0.0], (ends + 1) / len(gap)])
    return pd.DataFrame({"share": share, "accuracy": weak.mean() + np.concatenate([[0.0], gained[ends]]) / len(gap)})


def apgr(curve: pd.DataFrame) -> float | None:
    """Return the average performance gap recovered (RouteLLM, Ong et al. 2024, arXiv 2406.18665).

    APGR = (area - weak) / (strong - weak), where area is that under the curve of accuracy over the share of prompts
    sent to the strong expert, by trapezoids, and weak and strong are its ends. A random router has 0.5.

    >>> apgr(pd.DataFrame({"share": [0.0, 0.5, 1.0], "accuracy": [0.6, 0.8, 0.8]}))
    0.75
    """
    weak, strong = curve["accuracy"].iloc[[0, -1]]
    if strong <= weak:
        return None
    return round(float((np.trapz(curve["accuracy"], curve["share"]) - weak) / (strong - weak)), 12)


def cpt(curve: pd.DataFrame, recovered: float) -> float | None:
    """Return the call-performance threshold CPT(x) (RouteLLM): the share of prompts that the strong expert needs.

    It is the smallest share at which accuracy = weak + x (strong - weak), interpolated between points.

    >>> cpt(pd.DataFrame({"share": [0.0, 1.0], "accuracy": [0.6, 0.8]}), 0.5)
    0.5
    """
    share, accuracy = curve["share"].to_numpy(), curve["accuracy"].to_numpy()
    weak, strong = accuracy[0], accuracy[-1]
    if strong <= weak:
        return None
    goal = weak + recovered * (strong - weak)
    i = int(np.argmax(accuracy >= goal - 1e-12))
    if i == 0:
        return 0.0
    step = (goal - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
    return round(float(share[i - 1] + step * (share[i] - share[i - 1])), 12)


def hull(costs: np.ndarray, qualities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the non-decreasing convex hull of points (RouterBench, Hu et al. 2024, arXiv 2403.12031).

    A random mix of two routers reaches every point on the line between them, so the upper convex hull is attainable;
    points of lower quality at a higher cost are left out.

    Returns:
        Costs and qualities of the corners, costs ascending.
    """
    corners: list[tuple[float, float]] = []
    for cost, quality in sorted(zip(costs.tolist(), qualities.tolist()), key=lambda point: (point[0], -point[1])):
        if corners and quality <= corners[-1][1]:
            continue
        while len(corners) > 1:
            (c0, q0), (c1, q1) = corners[-2:]
            if (q1 - q0) * (cost - c0) > (quality - q0) * (c1 - c0):
                break
            corners.pop()
        corners.append((cost, quality))
    return tuple(np.array(corners).T)


def aiq(costs: np.ndarray, qualities: np.ndarray, low: float, high: float) -> float | None:
    """Return the average improvement in quality (RouterBench).

    AIQ = area under the non-decreasing convex hull of quality over cost, from `low` to `high`, divided by high - low.
    Right of its last corner the hull is constant. One range for all routers makes their values comparable.

    Args:
        costs, qualities: Points of the router's quality-cost curve, the first at cost `low`.
        low, high: Costs, dollars: those of the cheapest and the most expensive single expert.
    """
    if not high > low:
        return None
    x, y = hull(costs, qualities)
    grid = np.unique(np.concatenate([[low, high], x[(x > low) & (x < high)]]))
    return float(np.trapz(np.interp(grid, x, y), grid) / (high - low))


def calibration(predicted: np.ndarray, observed: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Compare predicted with observed scores in bins of equal width.

    Args:
        predicted, observed: Scores of any shape; unknown ones are left out. Predictions are clipped to 0 to 1.
        bins: Number of bins.

    Returns:
        One row per bin that has pairs: predicted, observed (means) and pairs (their number).
    """
    known = ~(np.isnan(predicted) | np.isnan(observed))
    predicted, observed = predicted[known].clip(0, 1), observed[known]
    rows = pd.DataFrame({"predicted": predicted, "observed": observed, "pairs": 1})
    groups = rows.groupby(np.minimum((predicted * bins).astype(int), bins - 1))
    return groups.agg({"predicted": "mean", "observed": "mean", "pairs": "sum"}).reset_index(drop=True)


def calibration_error(bins: pd.DataFrame) -> float | None:
    """Return the expected calibration error (Guo et al. 2017): mean of |predicted - observed|, weighted by pairs."""
    if not len(bins):
        return None
    return float(np.average((bins["predicted"] - bins["observed"]).abs(), weights=bins["pairs"]))
