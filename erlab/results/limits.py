"""Latency limits, MLPerf's among them, and which requests are within them."""

from dataclasses import dataclass

import pandas as pd

from erlab.results import metrics


@dataclass(frozen=True)
class LatencyLimits:
    """Limits on 99th percentiles of latencies."""

    name: str
    ttft_s: float
    tpot_ms: float


MLPERF = LatencyLimits("MLPerf server", 2.0, 200.0)  # llama2-70b
INTERACTIVE = LatencyLimits("MLPerf interactive", 0.45, 40.0)


def within(requests: pd.DataFrame, limits: LatencyLimits) -> pd.Series:
    """Return whether each request finished within both limits.

    An answer of one token has no time per output token and meets that limit.
    """
    tpot = metrics.tpot(requests)
    fast = (metrics.ttft(requests) <= limits.ttft_s) & (tpot.isna() | (tpot <= limits.tpot_ms))
    return metrics.finished(requests) & fast.fillna(False)


def goodput(requests: pd.DataFrame, limits: LatencyLimits) -> float:
    """Compute requests/s within both limits; NA if no time is known."""
    seconds = metrics.measured_seconds(requests)
    return float(within(requests, limits).sum() / seconds) if pd.notna(seconds) and seconds > 0 else pd.NA


def holds(requests: pd.DataFrame, limits: LatencyLimits) -> bool:
    """Return whether both 99th percentiles are within the limits."""
    ttft, tpot = metrics.percentile(metrics.ttft(requests), 99), metrics.percentile(metrics.tpot(requests), 99)
    return bool(ttft <= limits.ttft_s and (pd.isna(tpot) or tpot <= limits.tpot_ms))
