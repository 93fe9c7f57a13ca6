"""Server and GPU metrics, sampled during a measured cell.

    with sampled(server.metrics, file):
        users.run(...)

Servers publish them in Prometheus' text format: Triton (`nv_inference_*`, TensorRT-LLM's `nv_trt_llm_*`, the tiny
engine's `erlab_*`), vLLM (`vllm:*`), trtllm-serve. Utilisation, power and memory of the GPUs come from NVML, which
needs the package nvidia-ml-py and a driver. Metrics that cannot be read have no rows.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

from erlab import parquet

SECONDS = 0.5  # between samples
SCHEMA = pa.schema(
    [
        pa.field("t", pa.int64(), nullable=False),  # ns since sampling began
        pa.field("source", pa.string(), nullable=False),  # a server's name, or its address; or nvml
        pa.field("metric", pa.string(), nullable=False),
        pa.field("labels", pa.string(), nullable=False),  # JSON
        pa.field("value", pa.float64(), nullable=False),
    ]
)


@contextmanager
def sampled(addresses: Mapping[str, str], file: Path, every: float = SECONDS) -> Iterator[None]:
    """Sample servers and GPUs at the start, periodically and at the end.

    Args:
        addresses: HOST:PORT or URL of each server's metrics page, by the name of the server.
        file: Parquet file to write, a table `SCHEMA`.
    """
    pages = {name: a if "://" in a else f"http://{a}/metrics" for name, a in addresses.items()}
    rows: list[dict] = []
    start, over = time.monotonic_ns(), threading.Event()

    def sample() -> None:
        now = time.monotonic_ns() - start
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
        parquet.save(pa.Table.from_pylist(rows, schema=SCHEMA), file)


def read(page: str) -> list[dict]:
    """Return the samples of a metrics page without histogram buckets; none if it cannot be read."""
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
    """Return the utilisation (%), power (W) and used memory (bytes) of each GPU; none without NVML."""
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
            with suppress(pynvml.NVMLError):  # not supported by this GPU
                rows.append({"metric": metric, "labels": labels, "value": float(value())})
    return rows
