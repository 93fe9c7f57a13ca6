"""The infrastructure's side of a measured cell: servers' own metrics and the GPU's, sampled while users ask.

    with sampled(server.metrics, file):
        users.run(...)
    overview(folder)  # a row a cell

Servers tell them as Prometheus' text: Triton (`nv_inference_*`, TensorRT-LLM's `nv_trt_llm_*`, the tiny engine's
`erlab_*`), vLLM (`vllm:*`), trtllm-serve. The GPU's utilisation, power and memory come from NVML where the package
nvidia-ml-py and a driver are there. What cannot be read has no rows.
"""

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

from erlab.results.records import save_table

SECONDS = 0.5  # between two samples
SCHEMA = pa.schema(
    [
        pa.field("t", pa.int64(), nullable=False),  # ns since sampling began
        pa.field("source", pa.string(), nullable=False),  # a server's name, or its address; or nvml
        pa.field("metric", pa.string(), nullable=False),
        pa.field("labels", pa.string(), nullable=False),  # JSON
        pa.field("value", pa.float64(), nullable=False),
    ]
)
# What engines call the same thing, each with the labels it must have.
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
_QUEUED = (
    ("erlab_queue_seconds_total", "erlab_requests_total", 1e3),
    ("vllm:request_queue_time_seconds_sum", "vllm:request_queue_time_seconds_count", 1e3),
    ("nv_inference_queue_duration_us", "nv_inference_request_success", 1e-3),
)


@contextmanager
def sampled(
    addresses: str | Sequence[str] | Mapping[str, str] | None, file: Path, every: float = SECONDS
) -> Iterator[None]:
    """Sample servers at these addresses (HOST:PORT, or a metrics page's URL; by name, where they have one) and GPUs, at
    the start, every so many seconds and at the end; write the table `SCHEMA`."""
    given = (addresses,) if isinstance(addresses, str) else addresses or ()
    named = given if isinstance(given, Mapping) else {address: address for address in given}
    pages = {name: a if "://" in a else f"http://{a}/metrics" for name, a in named.items()}
    rows: list[dict] = []
    began, over = time.monotonic_ns(), threading.Event()

    def sample() -> None:
        now = time.monotonic_ns() - began
        for source, page in pages.items():
            rows.extend({"t": now, "source": source, **row} for row in read(page))
        rows.extend({"t": now, "source": "nvml", **row} for row in read_gpus())

    def keep_sampling() -> None:
        while not over.wait(every):
            sample()

    sample()
    thread = threading.Thread(target=keep_sampling, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sample()
        save_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)


def read(page: str) -> list[dict]:
    """A metrics page's samples without histograms' buckets; none where it cannot be read."""
    try:
        with urllib.request.urlopen(page, timeout=5) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    except (OSError, ValueError):
        return []
    return [
        {"metric": sample.name, "labels": json.dumps(sample.labels, sort_keys=True), "value": float(sample.value)}
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    ]


def read_gpus() -> list[dict]:
    """Every GPU's utilisation (%), power (W) and used memory (bytes) by NVML; none without it."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, or a driver that does not answer
        return []
    rows = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        device, labels = pynvml.nvmlDeviceGetHandleByIndex(number), json.dumps({"gpu": number})
        values = {
            "gpu_utilisation": lambda d=device: pynvml.nvmlDeviceGetUtilizationRates(d).gpu,
            "gpu_power_w": lambda d=device: pynvml.nvmlDeviceGetPowerUsage(d) / 1e3,
            "gpu_memory_bytes": lambda d=device: pynvml.nvmlDeviceGetMemoryInfo(d).used,
        }
        for metric, value in values.items():
            with suppress(pynvml.NVMLError):  # what this GPU does not tell
                rows.append({"metric": metric, "labels": labels, "value": float(value())})
    return rows


def overview(folder: Path) -> pd.DataFrame:
    """A row a sampled cell of a folder: requests running (mean) and waiting (largest), KV cache in use (largest, and in
    which unit), time in the engine's queue (mean, ms), the GPUs' utilisation (mean, %) and power (sum of means, W).
    NA where the servers do not tell."""
    rows = []
    for file in sorted(Path(folder).glob("*.parquet")):
        system, users = re.fullmatch(r"(.+)-(\d+)users", file.stem).groups()
        samples = pd.read_parquet(file)
        known = (found for one in _CACHE if (found := _cached(samples, *one)))
        cache, unit = next(known, (pd.NA, pd.NA))
        rows.append(
            {
                "system": system,
                "users": int(users),
                "running": _first(_gauge(samples, *one).mean() for one in _RUNNING),
                "waiting": _first(_gauge(samples, *one).max() for one in _WAITING),
                "KV in use": cache,
                "KV unit": unit,
                "queue ms": _first(_mean_time(samples, *one) for one in _QUEUED),
                "GPU %": _first([_gauge(samples, "gpu_utilisation", {}, "mean").mean()]),
                "GPU W": _first([_gauge(samples, "gpu_power_w", {}).mean()]),
            }
        )
    columns = ["system", "users", "running", "waiting", "KV in use", "KV unit", "queue ms", "GPU %", "GPU W"]
    return pd.DataFrame(rows, columns=columns).set_index(["system", "users"])


def _gauge(samples: pd.DataFrame, metric: str, labels: dict, over: str = "sum") -> pd.Series:
    """A metric's values, one a moment, summed (or else combined) over models and devices."""
    mine = samples[samples.metric == metric]
    for key, value in labels.items():
        mine = mine[mine.labels.map(lambda text, k=key: json.loads(text).get(k)) == value]
    return mine.groupby("t").value.agg(over)


def _cached(samples: pd.DataFrame, metric: str, labels: dict, unit: str) -> tuple | None:
    most = _gauge(samples, metric, labels, "mean" if unit == "of 1" else "sum").max()
    return None if pd.isna(most) else (most, unit)


def _mean_time(samples: pd.DataFrame, total: str, count: str, to_ms: float) -> float:
    """What a counter of times rose by, over what a counter of requests rose by."""
    told = [_gauge(samples, name, {}) for name in (total, count)]
    rises = [values.iloc[-1] - values.iloc[0] for values in told if len(values) > 1]
    return rises[0] / rises[1] * to_ms if len(rises) == 2 and rises[1] > 0 else pd.NA


def _first(values):
    """The first that is known, NA if none is."""
    return next((value for value in values if not pd.isna(value)), pd.NA)
