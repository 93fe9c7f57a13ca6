"""Criteria of the paper's claims, evaluated as margins over thresholds.

The margin is the ratio by which a claim meets its threshold: it holds from 1 on, 1.3 means 30 % to spare, and 0.8
misses the threshold by 20 %. To test a claim of your own, add it to `paper.CLAIMS` and its check to `CHECKS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

BASELINES = ("A", "B", "C")
_V1_ROUTERS = ("70B-INT8", "13B-FP16", "13B-FP8")
_ASSUMPTIONS = {  # system: assumptions of `paper.ASSUMPTIONS` about it
    **dict.fromkeys(BASELINES, ("baselines", "replicas")),
    "D": ("D-precision", "kv-pool", "clusters"),
    "E": ("E-precision", "clusters"),
    "TP8": ("replicas",),
    **dict.fromkeys(_V1_ROUTERS, ("kv-pool", "clusters")),
}
_ALWAYS = ("loads", "max-batch", "input-length", "output-length")


@dataclass(frozen=True)
class Cells:
    """Metrics that a check evaluates.

    Attributes:
        loads: Numbers of concurrent users, ascending.
        values: (metric, system): array of shape (draws, loads). Draw 0 is observed, the others are bootstrap samples.
    """

    loads: tuple[int, ...]
    values: Mapping[tuple[str, str], np.ndarray]

    def table(self, metric: str, systems: tuple[str, ...]) -> np.ndarray:
        """Return a metric, shape (systems, draws, loads).

        Raises:
            Unknown: A system has no value at some load.
        """
        missing = [s for s in systems if np.isnan(self.values[metric, s][0]).any()]
        if missing:
            raise Unknown(f"{metric} is unknown for {', '.join(missing)} at some load")
        return np.stack([self.values[metric, s] for s in systems])


class Unknown(Exception):
    """A claim's metric is unknown or undefined in the records."""


@dataclass(frozen=True)
class ClaimCheck:
    """Test of one claim.

    Attributes:
        metrics: Columns of `metrics.summarise` that it uses.
        judge: Function from the `Cells` of these systems to the margin of each draw and the observation in words.
    """

    words: str
    tolerance: str
    systems: tuple[str, ...]
    figure: str
    metrics: tuple[str, ...]
    judge: Callable[[Cells], tuple[np.ndarray, str]]
    least_loads: int = 1

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Assumptions of `paper.ASSUMPTIONS` that a verdict depends on."""
        return tuple(dict.fromkeys([a for s in self.systems for a in _ASSUMPTIONS.get(s, ())] + list(_ALWAYS)))


def _above(ratio: np.ndarray) -> np.ndarray:
    """Make a ratio a margin that misses at exactly 1."""
    return np.where(ratio == 1, np.nextafter(1, 0), ratio)


def _lower(metric: str, lower: tuple[str, ...], higher: tuple[str, ...]):
    """Return a judge of `lower` below `higher` at a majority of loads."""

    def judge(cells: Cells) -> tuple[np.ndarray, str]:
        table, text, margins = cells.table(metric, lower + higher), [], []
        loads = len(cells.loads)
        for i, low in enumerate(lower):
            for j, high in enumerate(higher, len(lower)):
                ratio = table[j] / table[i]
                wins = int((ratio[0] > 1).sum())
                mean = math.exp(-np.log(ratio[0]).mean())
                text.append(f"{low} below {high} at {wins} of {loads} loads (mean ratio {mean:.2f})")
                margins.append(np.sort(ratio)[:, (loads - 1) // 2])  # above 1 if more than half of the ratios are
        return _above(np.min(margins, axis=0)), "; ".join(text)

    return judge


def _similar_ttft(cells: Cells) -> tuple[np.ndarray, str]:
    table = cells.table("ttft_median_s", (*BASELINES, "E"))
    ratio = table[-1] / np.median(table[:-1], axis=0)
    median = np.median(ratio, axis=-1)
    spread = f"{ratio[0].min():.2f} to {ratio[0].max():.2f}"
    text = f"E / baselines: {median[0]:.2f} in median over {len(cells.loads)} loads ({spread})"
    return 1.5 / np.maximum(median, 1 / median), text


def _minimum_ttft(cells: Cells) -> tuple[np.ndarray, str]:
    systems = (*BASELINES, "D", "E")
    least = 1000 * cells.table("ttft_min_s", systems).min(axis=-1)
    gateway = cells.table("routing_min_ms", ("D", "E"))[:, 0].min()
    text = ", ".join(f"{s} {v:.1f} ms" for s, v in zip(systems, least[:, 0]))
    margin = _above(least[3:].min(axis=0) / least[:3].max(axis=0))
    return margin, f"minima: {text}; of these the gateway's decision takes at least {gateway:.2f} ms"


def _minimal_overhead(cells: Cells) -> tuple[np.ndarray, str]:
    routing = cells.table("routing_median_ms", ("D", "E"))
    ttft = 1000 * cells.table("ttft_median_s", ("D", "E"))
    share = 100 * (routing / ttft).max(axis=0)
    spread = np.median(np.abs(ttft[0] - ttft[1]) / routing.max(axis=0), axis=-1)
    text = (
        f"decision {np.median(routing[:, 0]):.2f} ms, {share[0].min():.1f} to {share[0].max():.1f} % of the median "
        f"time to first token; D and E differ by {spread[0]:.0f} times the decision in median over "
        f"{len(cells.loads)} loads"
    )
    return np.minimum(_above(5 / share.max(axis=-1)), spread / 10), text


def _stable(cells: Cells) -> tuple[np.ndarray, str]:
    moderate = [n for n in cells.loads if n <= math.sqrt(cells.loads[0] * cells.loads[-1])]
    throughput = cells.table("output_throughput", ("D",))[0][:, : len(moderate)]
    latency = cells.table("e2e_median_s", ("D",))[0][:, : len(moderate)]
    retained = (throughput / np.maximum.accumulate(throughput, axis=-1)).min(axis=-1)
    grown = latency.max(axis=-1) / latency[:, 0]
    text = (
        f"{moderate[0]} to {moderate[-1]} users: throughput stays at {100 * retained[0]:.0f} % or more of the best so far, "
        f"median response time grows to {grown[0]:.2f} times that at {moderate[0]}"
    )
    return np.minimum(retained / 0.9, 2 / grown), text


def _competitive(cells: Cells) -> tuple[np.ndarray, str]:
    systems = (*BASELINES, "E")
    throughput, latency = cells.table("output_throughput", systems), cells.table("e2e_median_s", systems)
    near = (throughput >= 0.8 * throughput.max(axis=0)) & (latency <= 1.25 * latency.min(axis=0))
    counts = near.sum(axis=-1)
    text = ", ".join(f"{s} {n}" for s, n in zip(systems, counts[:, 0]))
    margin = counts[-1] / (counts[:-1].max(axis=0) + 1)
    return margin, f"competitive loads out of {len(cells.loads)}: {text}"


def _v1_throughput(cells: Cells) -> tuple[np.ndarray, str]:
    table = cells.table("output_throughput", ("TP8", *_V1_ROUTERS))
    ratio = table[1:] / table[0]
    median, top = np.median(ratio, axis=-1), ratio[..., -1]
    named = zip(_V1_ROUTERS, median[:, 0], top[:, 0])
    text = "; ".join(f"{s}: {m:.2f} in median, {t:.2f} at {cells.loads[-1]} users" for s, m, t in named)
    return np.minimum(median.min(axis=0) / 0.8, _above(top.min(axis=0))), f"throughput / TP8's: {text}"


def _v1_size(cells: Cells) -> tuple[np.ndarray, str]:
    table = cells.table("output_throughput", _V1_ROUTERS)
    ratio = np.median(table[0] / table[1:], axis=-1)
    text = ", ".join(f"70B-INT8 / {s} {r:.2f}" for s, r in zip(_V1_ROUTERS[1:], ratio[:, 0]))
    return ratio.min(axis=0) / 0.9, f"throughput in median over {len(cells.loads)} loads: {text}"


CHECKS = {
    "v2-ttft-baselines": ClaimCheck(
        "the median time to first token of each of A, B and C is below D's at more than half of the loads",
        "more than half of the loads", (*BASELINES, "D"), "fig4", ("ttft_median_s",),
        _lower("ttft_median_s", BASELINES, ("D",)),
    ),
    "v2-ttft-8b": ClaimCheck(
        "E's median time to first token over the median of A's, B's and C's is 1/1.5 to 1.5, in median over the loads",
        "factor 1.5", (*BASELINES, "E"), "fig4", ("ttft_median_s",), _similar_ttft,
    ),
    "v2-ttft-overhead": ClaimCheck(
        "over all loads, the smallest time to first token of D and of E is above the smallest of each of A, B and C",
        "none", (*BASELINES, "D", "E"), "fig4", ("ttft_min_s", "routing_min_ms"), _minimum_ttft,
    ),
    "v2-tpot-8b": ClaimCheck(
        "E's median time per output token is below that of each of A, B, C and D at more than half of the loads",
        "more than half of the loads", (*BASELINES, "D", "E"), "fig5", ("tpot_median_ms",),
        _lower("tpot_median_ms", ("E",), (*BASELINES, "D")),
    ),
    "v2-tpot-comm": ClaimCheck(
        "the median time per output token of A and of B is below C's at more than half of the loads",
        "more than half of the loads", BASELINES, "fig5", ("tpot_median_ms",),
        _lower("tpot_median_ms", ("A", "B"), ("C",)),
    ),
    "v2-overhead-minimal": ClaimCheck(
        "the time from submission to the gateway's decision is less than 5 % of the median time to first token of D "
        "and E at every load, and the medians of D and E differ by at least 10 times that time, in median over the "
        "loads",
        "5 %, 10 times", ("D", "E"), "fig4", ("routing_median_ms", "ttft_median_s"), _minimal_overhead,
    ),
    "v2-70b-moderate": ClaimCheck(
        "up to the geometric middle of the loads, D's throughput stays at 90 % or more of the best at a smaller load "
        "and its median response time at most doubles from the smallest load",
        "90 %, twice", ("D",), "fig6", ("output_throughput", "e2e_median_s"), _stable, least_loads=3,
    ),
    "v2-8b-wide": ClaimCheck(
        "E is competitive (throughput at least 0.8 and median response time at most 1.25 times the best of A, B, C "
        "and E) at more loads than any of A, B and C",
        "0.8 times, 1.25 times", (*BASELINES, "E"), "fig7", ("output_throughput", "e2e_median_s"), _competitive,
        least_loads=2,
    ),
    "v1-throughput": ClaimCheck(
        "each router system's throughput is at least 0.8 times TP8's in median over the loads and above it at the "
        "highest load",
        "0.8 times", ("TP8", *_V1_ROUTERS), "fig7", ("output_throughput",), _v1_throughput, least_loads=2,
    ),
    "v1-size": ClaimCheck(
        "70B-INT8's throughput is at least 0.9 times 13B-FP16's and 13B-FP8's, in median over the loads",
        "0.9 times", _V1_ROUTERS, "fig7", ("output_throughput",), _v1_size,
    ),
}  # fmt: skip
