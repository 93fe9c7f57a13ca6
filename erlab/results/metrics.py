"""Latency and throughput metrics of request records (times in integer nanoseconds).

The definitions are those that vLLM and AIPerf share; docstrings name tools that differ. A metric per request is a float
Series aligned with the input; it is NA for failed requests and for unknown times.

>>> row = dict(status="ok", t_submit=100, t_first=110, t_last=150, output_tokens=5)
>>> requests = pd.DataFrame([row]).convert_dtypes()
>>> ttft(requests).item() * 1e9, tpot(requests).item() * 1e6
(10.0, 10.0)
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

_SECOND, _MILLISECOND = 1e9, 1e6  # nanoseconds
CELL = ["paper", "system", "source", "users"]  # columns that identify a cell, a row of `summarise`


def finished(requests: pd.DataFrame) -> pd.Series:
    """Return whether each request finished (status "ok").

    Latencies and throughput count only finished requests.
    """
    return requests["status"] == "ok"


def ttft(requests: pd.DataFrame) -> pd.Series:
    """Compute time to first token, seconds: t_first - t_submit.

    The first token is the first response with text. The benchmark of vLLM counts the first chunk even if it is empty;
    MLPerf starts at the scheduled time.
    """
    return _between(requests, "t_submit", "t_first") / _SECOND


def tpot(requests: pd.DataFrame) -> pd.Series:
    """Compute time per output token after the first, milliseconds.

    (t_last - t_first) / (output_tokens - 1); NA below two tokens. As in vLLM and MLPerf; the TPOT of GuideLLM includes
    the first token.
    """
    gaps = requests["output_tokens"] - 1
    return _between(requests, "t_first", "t_last") / gaps.where(gaps >= 1) / _MILLISECOND


def e2e(requests: pd.DataFrame) -> pd.Series:
    """Compute end-to-end response time, seconds: t_last - t_submit."""
    return _between(requests, "t_submit", "t_last") / _SECOND


def routing(requests: pd.DataFrame) -> pd.Series:
    """Compute time to the gateway's decision, milliseconds: t_routed - t_submit.

    NA for baselines.
    """
    return _between(requests, "t_submit", "t_routed") / _MILLISECOND


def measured_seconds(requests: pd.DataFrame) -> float:
    """Compute the measured time, seconds; NA if no request finished.

    It is last completion - first submission, summed over runs.
    """
    runs = requests.assign(t_last=requests["t_last"].where(finished(requests))).groupby("run_id")
    spans = (runs["t_last"].max() - runs["t_submit"].min()) / _SECOND
    return spans.sum(min_count=1)


def output_throughput(requests: pd.DataFrame) -> float:
    """Compute output tokens per second of measured time.

    Finished requests count; NA if their tokens or times are unknown. GenAI-Perf also divides by last response - first
    request. A failed request adds time but no tokens.
    """
    return _rate(requests.loc[finished(requests), "output_tokens"].sum(skipna=False), requests)


def request_throughput(requests: pd.DataFrame) -> float:
    """Compute finished requests per second of measured time."""
    return _rate(finished(requests).sum(), requests)


def percentile(values: Iterable, q: float) -> float:
    """Compute the q-th percentile, interpolated linearly; NA without values.

    MLPerf takes sorted[floor(n q)].
    """
    known = pd.Series(values).dropna().to_numpy(dtype=float)
    return float(np.percentile(known, q)) if len(known) else pd.NA


_SUMMARISED = {("ttft", "s"): ttft, ("tpot", "ms"): tpot, ("e2e", "s"): e2e, ("routing", "ms"): routing}
_QUANTILES = {"min": 0.0, "p5": 0.05, "q1": 0.25, "median": 0.5, "q3": 0.75, "p95": 0.95, "p99": 0.99}


def summarise(requests: pd.DataFrame, by: Sequence[str] = CELL) -> pd.DataFrame:
    """Compute the metrics of each cell.

    Runs of a cell are pooled; percentiles are never averaged.

    Returns:
        One row per cell, sorted by `by`. Names of times end in their unit, throughputs are per second; NA is unknown or
        undefined.
    """
    cell = requests.groupby(list(by), dropna=False).ngroup()
    numbered = requests[["run_id", "machine", "t_submit", "t_last", "output_tokens"]]
    numbered = numbered.assign(cell=cell, failed=~finished(requests))
    cells = numbered.groupby("cell")
    _, first = np.unique(cell.to_numpy(), return_index=True)
    table = requests[list(by)].iloc[first].reset_index(drop=True)
    machines = numbered[["cell", "machine"]].dropna().drop_duplicates().sort_values("machine")
    table["machine"] = machines.groupby("cell")["machine"].agg(", ".join).astype("string")
    table = table.assign(runs=cells["run_id"].nunique(), requests=cells.size(), failed=cells["failed"].sum())
    columns = {}
    for (name, unit), metric in _SUMMARISED.items():
        quantiles = _quantiles(metric(requests).to_numpy(float, na_value=np.nan), cell.to_numpy(), len(table))
        for label, values in zip(_QUANTILES, quantiles):
            columns[f"{name}_{label}_{unit}"] = pd.array(values, dtype="Float64")
    return pd.concat([table, pd.DataFrame(columns | _throughputs(numbered), table.index)], axis=1)


def _quantiles(values: np.ndarray, cell: np.ndarray, cells: int) -> np.ndarray:
    """Compute quantiles (rows) of the known values of each cell (columns)."""
    order = np.argsort(cell, kind="stable")
    ends = np.cumsum(np.bincount(cell, minlength=cells))
    quantiles = np.full((len(_QUANTILES), cells), np.nan)
    for i, part in enumerate(np.split(values[order], ends[:-1])):
        known = part[~np.isnan(part)]
        if len(known):
            quantiles[:, i] = np.quantile(known, list(_QUANTILES.values()))
    return quantiles


def _throughputs(numbered: pd.DataFrame) -> dict[str, pd.Series]:
    """Compute `output_throughput` and `request_throughput` of all cells at once."""
    ended = ~numbered["failed"]
    runs = numbered.assign(t_last=numbered["t_last"].where(ended)).groupby(["cell", "run_id"])
    spans = (runs["t_last"].max() - runs["t_submit"].min()) / _SECOND
    seconds = spans.groupby("cell").sum(min_count=1).astype("Float64")
    tokens = numbered["output_tokens"].where(ended, 0).astype("Float64")
    unknown = tokens.isna().groupby(numbered["cell"]).any()
    amounts = {
        output_throughput.__name__: tokens.groupby(numbered["cell"]).sum().mask(unknown),
        request_throughput.__name__: ended.groupby(numbered["cell"]).sum(),
    }
    return {name: amount.astype("Float64") / seconds.where(seconds > 0) for name, amount in amounts.items()}


def _between(requests: pd.DataFrame, start: str, end: str) -> pd.Series:
    span = requests[end] - requests[start]
    return span.where(finished(requests)).astype("Float64")


def _rate(amount, requests: pd.DataFrame) -> float:
    seconds = measured_seconds(requests)
    return pd.NA if pd.isna(seconds) or pd.isna(amount) or seconds <= 0 else float(amount / seconds)
