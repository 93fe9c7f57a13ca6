"""Beyond the paper: what routing policies cost or gain, goodput under latency limits, cost and energy.

    from erlab import paper, simulation
    from erlab.simulation import beyond
    beyond.policies(paper.SYSTEMS["v2"]["D"], (200, 600), shares={"balanced": None, "k-means": shares})
    beyond.largest_load(paper.SYSTEMS["v2"]["E"], beyond.MLPERF)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from erlab.results import metrics
from erlab.simulation.hardware import gpu
from erlab.simulation.system import Setup, simulate
from erlab.spec import System, is_number, require


@dataclass(frozen=True)
class Limits:
    """Latency limits on the 99th percentiles: time to first token (s) and time per output token (ms)."""

    name: str
    ttft_s: float
    tpot_ms: float


MLPERF = Limits("MLPerf server", 2.0, 200.0)  # llama2-70b, p99
INTERACTIVE = Limits("MLPerf interactive", 0.45, 40.0)


def within(requests: pd.DataFrame, limits: Limits) -> pd.Series:
    """Whether each finished request met both limits; one of a single token has no time per output token to miss."""
    tpot = metrics.tpot(requests)
    fast = (metrics.ttft(requests) <= limits.ttft_s) & (tpot.isna() | (tpot <= limits.tpot_ms))
    return metrics.finished(requests) & fast.fillna(False)


def goodput(requests: pd.DataFrame, limits: Limits) -> float:
    """Requests a second that met both limits; NA where no time is known."""
    seconds = metrics.measured_seconds(requests)
    return float(within(requests, limits).sum() / seconds) if pd.notna(seconds) and seconds > 0 else pd.NA


def holds(requests: pd.DataFrame, limits: Limits) -> bool:
    """Whether the 99th percentiles of both latencies lie within the limits."""
    ttft, tpot = metrics.percentile(metrics.ttft(requests), 99), metrics.percentile(metrics.tpot(requests), 99)
    return bool(ttft <= limits.ttft_s and (pd.isna(tpot) or tpot <= limits.tpot_ms))


def largest_load(system: System, limits: Limits, *, most: int = 4096, **options) -> int:
    """The largest number of closed-loop users (up to `most`) the system holds within the limits; 0 if not even one.

    By bisection, which takes for granted that what holds at one load holds at fewer users. `options` go to `simulate`.
    """
    return _largest(lambda users: simulate(system, users, **options).requests, limits, most)


def _largest(run: Callable[[int], pd.DataFrame], limits: Limits, most: int) -> int:
    """The largest number of users up to `most` whose requests, as `run` answers, hold the limits; 0 for none."""
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
    """A row a clusterer, policy and load: latencies and throughput, and the largest expert's share of the requests.

    Clusterers come as cluster `shares` or as their `decisions` on real prompts, by name; `options` go to `simulate`.
    """
    from erlab.routing.policies import POLICIES

    given = [(name, {"shares": s}) for name, s in (shares or {}).items()]
    given += [(name, {"decisions": d}) for name, d in (decisions or {}).items()]
    rows = []
    for name, routing in given or [("even", {})]:
        for policy in names or list(POLICIES):
            for users in loads:
                found = simulate(system, users, policy=policy, **routing, **options).requests
                ttft = metrics.ttft(found)
                rows.append(
                    {
                        "clusterer": name,
                        "policy": policy,
                        "users": users,
                        "largest share": found["expert"].value_counts(normalize=True).max(),
                        "ttft_median_s": metrics.percentile(ttft, 50),
                        "ttft_p99_s": metrics.percentile(ttft, 99),
                        "tpot_median_ms": metrics.percentile(metrics.tpot(found), 50),
                        "e2e_median_s": metrics.percentile(metrics.e2e(found), 50),
                        "output_throughput": metrics.output_throughput(found),
                    }
                )
    return pd.DataFrame(rows)


def economics(
    summary: pd.DataFrame, systems: Mapping[str, System], setup: Setup = Setup(), dollars_per_gpu_hour: float = 2.5
) -> pd.DataFrame:
    """Cost per million output tokens ($) and energy per output token (J) of each row of `metrics.summarise`.

    All of a system's GPUs are paid for and draw board power for the whole time, busy or idle: an upper bound on energy.
    The price is an assumption.
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
    fits = is_number(dollars_per_gpu_hour) and dollars_per_gpu_hour > 0
    require(fits, "dollars_per_gpu_hour", "economics", "be above 0", dollars_per_gpu_hour)


def served_within(
    systems: Mapping[str, System],
    limits: Iterable[Limits] = (MLPERF, INTERACTIVE),
    most: int = 4096,
    **options,
) -> pd.DataFrame:
    """A row a system and limits: the largest load held (see `largest_load`), and goodput there (requests/s);
    `options` go to `simulate`."""
    rows = []
    for name, system in systems.items():
        run = lru_cache(None)(lambda users, system=system: simulate(system, users, **options).requests)
        for limit in limits:
            users = _largest(run, limit, most)
            rate = goodput(run(users), limit) if users else 0.0
            rows.append({"system": name, "limits": limit.name, "users": users, "goodput": rate})
    return pd.DataFrame(rows)
