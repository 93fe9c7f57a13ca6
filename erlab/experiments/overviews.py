"""Tables of measured and simulated cells, as notebooks show them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from erlab import paper
from erlab.results import metrics
from erlab.results.records import Records
from erlab.serving import external
from erlab.spec import System

# Metrics of the same meaning in the engines' metrics pages, in the order in which they are looked for.
_RUNNING = (
    ("erlab_running_requests", {}),
    ("vllm:num_requests_running", {}),
    ("nv_trt_llm_request_metrics", {"request_type": "scheduled"}),
)
_WAITING = (
    ("erlab_waiting_requests", {}),
    ("vllm:num_requests_waiting", {}),
    ("nv_trt_llm_request_metrics", {"request_type": "waiting"}),
)
_CACHE = (
    ("erlab_kv_tokens", {}, "tokens"),
    ("vllm:kv_cache_usage_perc", {}, "of 1"),
    ("nv_trt_llm_kv_cache_block_metrics", {"kv_cache_block_type": "used"}, "blocks"),
)
_QUEUED = (  # total time, number of requests, factor to ms
    ("erlab_queue_seconds_total", "erlab_requests_total", 1e3),
    ("vllm:request_queue_time_seconds_sum", "vllm:request_queue_time_seconds_count", 1e3),
    ("nv_inference_queue_duration_us", "nv_inference_request_success", 1e-3),
)


def describe_systems(systems: dict[str, System], triton: str | None = None) -> pd.DataFrame:
    """Describe systems and their limits, one row per system; an external server's limits are unknown."""
    title = external.title(triton) if triton else None
    rows = [
        {
            "system": name,
            "in the paper": paper.SYSTEMS[system.paper][name].title,
            "runs as": title or system.title,
            "max batch": pd.NA if triton else system.expert.max_batch_size,
            "KV tokens": pd.NA if triton else system.expert.kv_tokens,
        }
        for name, system in systems.items()
    ]
    return pd.DataFrame(rows)


def cells(records: Records) -> pd.DataFrame:
    """Summarise cells: medians over requests, failures and throughput, one row per system and load.

    See `metrics.summarise`. Measured cells also have the client-side latency.
    """
    columns = ["requests", "failed", "ttft_median_s", "tpot_median_ms", "e2e_median_s", "output_throughput"]
    return _summary(records)[columns].astype(float).round(3).join(client_latency(records.runs))


def routing(records: Records) -> pd.DataFrame:
    """Summarise the time from sending to the gateway's decision (ms), one row per router system and load."""
    return _summary(records)[[f"routing_{q}_ms" for q in ("min", "median", "p95", "p99")]].astype(float).round(3)


def client_latency(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the client-side latency by system and load, and whether it is small enough (`clients.check`).

    It is the part of the time to first token that the users add, ms. Empty if the runs were not measured.
    """
    index = ["system", "users"]
    if "client" not in runs:
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []], names=index))
    known = runs[runs["client"].notna()].drop_duplicates(index)  # repetitions share the self-test of their load
    own = pd.DataFrame(known["client"].tolist())[["ttft_p50", "ttft_p99"]].round(2)
    own.columns = ["users add p50 ms", "users add p99 ms"]
    own.index = pd.MultiIndex.from_frame(known[index])
    return own.assign(client=known["client_invalid"].fillna("ok").to_numpy())


def telemetry(folder: Path) -> pd.DataFrame:
    """Summarise what `telemetry.sampled` sampled, one row per cell; NA where servers have no such metric.

    Columns: running requests (mean), waiting requests (maximum), KV cache in use (maximum) and its unit, time in the
    engine's queue (mean, ms), utilisation of the GPUs (mean, %), and their power (mean of the sum, W).
    """
    rows = []
    for file in sorted(Path(folder).glob("*users.parquet")):  # of a repeated cell, its first repetition
        system, users = re.fullmatch(r"(.+)-(\d+)users", file.stem).groups()
        samples = pd.read_parquet(file)
        caches = (cache for metric in _CACHE if (cache := _cache(samples, *metric)))
        cache, unit = next(caches, (pd.NA, pd.NA))
        rows.append(
            {
                "system": system,
                "users": int(users),
                "running": _first_known(_gauge(samples, *metric).mean() for metric in _RUNNING),
                "waiting": _first_known(_gauge(samples, *metric).max() for metric in _WAITING),
                "KV in use": cache,
                "KV unit": unit,
                "queue ms": _first_known(_mean_time(samples, *metric) for metric in _QUEUED),
                "GPU %": _first_known([_gauge(samples, "gpu_utilisation", {}, "mean").mean()]),
                "GPU W": _first_known([_gauge(samples, "gpu_power_w", {}).mean()]),
            }
        )
    columns = ["system", "users", "running", "waiting", "KV in use", "KV unit", "queue ms", "GPU %", "GPU W"]
    return pd.DataFrame(rows, columns=columns).set_index(["system", "users"])


def _summary(records: Records) -> pd.DataFrame:
    return metrics.summarise(records.requests).set_index(["system", "users"])


def _gauge(samples: pd.DataFrame, metric: str, labels: dict, over: str = "sum") -> pd.Series:
    """Return a metric's value at each sampling time, summed (or else combined) over models and devices."""
    rows = samples[samples.metric == metric]
    for label, value in labels.items():
        rows = rows[rows.labels.map(lambda text, k=label: json.loads(text).get(k)) == value]
    return rows.groupby("t").value.agg(over)


def _cache(samples: pd.DataFrame, metric: str, labels: dict, unit: str) -> tuple | None:
    largest = _gauge(samples, metric, labels, "mean" if unit == "of 1" else "sum").max()
    return None if pd.isna(largest) else (largest, unit)


def _mean_time(samples: pd.DataFrame, total: str, count: str, to_ms: float) -> float:
    """Divide the increase of a counter of time by that of a counter of requests."""
    counters = [_gauge(samples, name, {}) for name in (total, count)]
    increases = [values.iloc[-1] - values.iloc[0] for values in counters if len(values) > 1]
    return increases[0] / increases[1] * to_ms if len(increases) == 2 and increases[1] > 0 else pd.NA


def _first_known(values: Iterable):
    return next((value for value in values if not pd.isna(value)), pd.NA)
