"""Studies beyond the paper: policies, goodput, cost and energy.

    from erlab import paper
    from erlab.simulation import beyond
    beyond.policies(paper.SYSTEMS["v2"]["D"], (200, 600), shares={"balanced": None, "k-means": shares})
    beyond.largest_load(paper.SYSTEMS["v2"]["E"], beyond.MLPERF)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import pandas as pd

from erlab.results import metrics
from erlab.results.limits import INTERACTIVE, MLPERF, LatencyLimits, goodput, holds, within  # noqa: F401
from erlab.simulation.hardware import gpu
from erlab.simulation.system import Setup, simulate, simulated_policies
from erlab.spec import System, is_number, require


def largest_load(system: System, limits: LatencyLimits, *, most: int = 4096, **options) -> int:
    """Find the most closed-loop users served within latency limits.

    The search is a bisection, so it assumes that a system that meets the limits at one load meets them with fewer
    users.
    """
    return _largest(lambda users: simulate(system, users, **options).requests, limits, most)


def _largest(run: Callable[[int], pd.DataFrame], limits: LatencyLimits, most: int) -> int:
    """Apply `largest_load` to the requests that `run` returns."""
    good = lambda users: holds(run(users), limits)  # noqa: E731
    low, high = 0, 1
    while high <= most and good(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def policies(
    system: System,
    loads: Iterable[int],
    names: Sequence[str] | None = None,
    shares: Mapping[str, Sequence[float] | None] | None = None,
    decisions: Mapping[str, Sequence] | None = None,
    **options,
) -> pd.DataFrame:
    """Compare routing policies.

    Args:
        names: Policies (default: all whose choice does not need a generalist or a strong expert).
        shares: Cluster shares by name of a clusterer; None for equal shares.
        decisions: Decisions on real prompts by name of a clusterer.

    Returns:
        One row per clusterer, policy and load: latencies, throughput, and the largest share of one expert in the
        requests.
    """
    clusterers = [(name, {"shares": s}) for name, s in (shares or {}).items()]
    clusterers += [(name, {"decisions": d}) for name, d in (decisions or {}).items()]
    rows = []
    for name, routing in clusterers or [("even", {})]:
        for policy in simulated_policies() if names is None else names:
            for users in loads:
                requests = simulate(system, users, policy=policy, **routing, **options).requests
                ttft = metrics.ttft(requests)
                rows.append(
                    {
                        "clusterer": name,
                        "policy": policy,
                        "users": users,
                        "largest share": requests["expert"].value_counts(normalize=True).max(),
                        "ttft_median_s": metrics.percentile(ttft, 50),
                        "ttft_p99_s": metrics.percentile(ttft, 99),
                        "tpot_median_ms": metrics.percentile(metrics.tpot(requests), 50),
                        "e2e_median_s": metrics.percentile(metrics.e2e(requests), 50),
                        "output_throughput": metrics.output_throughput(requests),
                    }
                )
    return pd.DataFrame(rows)


def economics(
    summary: pd.DataFrame, systems: Mapping[str, System], setup: Setup = Setup(), dollars_per_gpu_hour: float = 2.5
) -> pd.DataFrame:
    """Compute cost and energy per output token.

    All GPUs of a system are paid for and draw board power all the time, so the energy is an upper bound.

    Args:
        dollars_per_gpu_hour: Price of a GPU, above 0; the default is an assumption.

    Returns:
        One row per row of `summary`: GPUs, cost per million output tokens ($) and energy per output token (J).
    """
    check_price(dollars_per_gpu_hour)
    gpus = summary["system"].map({name: s.count * s.expert.tensor_parallel for name, s in systems.items()})
    rate = summary["output_throughput"].astype(float)
    return summary[["system", "users", "output_throughput"]].assign(
        gpus=gpus,
        dollars_per_million_tokens=gpus * dollars_per_gpu_hour / 3600 / rate * 1e6,
        joules_per_token=gpus * gpu(setup.gpu).power / rate,
    )


def check_price(dollars_per_gpu_hour: float) -> None:
    """Raise ErlabError unless the price is a number above 0."""
    valid = is_number(dollars_per_gpu_hour) and dollars_per_gpu_hour > 0
    require(valid, "dollars_per_gpu_hour", "economics", "be above 0", dollars_per_gpu_hour)


def served_within(
    systems: Mapping[str, System],
    limits: Iterable[LatencyLimits] = (MLPERF, INTERACTIVE),
    most: int = 4096,
    **options,
) -> pd.DataFrame:
    """Find the largest load per system and pair of limits.

    Returns:
        One row per system and limits: users (see `largest_load`) and goodput at that load (requests/s).
    """
    rows = []
    for name, system in systems.items():
        run = lru_cache(None)(lambda users, system=system: simulate(system, users, **options).requests)
        for limit in limits:
            users = _largest(run, limit, most)
            rate = goodput(run(users), limit) if users else 0.0
            rows.append({"system": name, "limits": limit.name, "users": users, "goodput": rate})
    return pd.DataFrame(rows)
