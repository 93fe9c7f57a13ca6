"""What is measured: one small function a metric, on a DataFrame of request records (times in integer nanoseconds).

The definitions are the common core of vLLM's and AIPerf's; where other tools differ, the docstring says so. A metric of
a request is a float Series like the input, NA where it is undefined: for failed requests and for unknown times.

>>> row = dict(status="ok", t_submit=100, t_first=110, t_last=150, output_tokens=5)
>>> requests = pd.DataFrame([row]).convert_dtypes()
>>> ttft(requests).item() * 1e9, tpot(requests).item() * 1e6
(10.0, 10.0)
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

_SECOND, _MILLISECOND = 1e9, 1e6  # nanoseconds
CELL = ["paper", "system", "source", "users"]  # what `summarise` has a row of


def finished(requests: pd.DataFrame) -> pd.Series:
    """Whether each request ended well (status "ok"); only such requests count in latencies and throughput."""
    return requests["status"] == "ok"


def ttft(requests: pd.DataFrame) -> pd.Series:
    """Time to first token, seconds: t_first - t_submit, from sending to the first response that carries text.

    vLLM's benchmark counts the first chunk even if it is empty; MLPerf starts at the scheduled time.
    """
    return _between(requests, "t_submit", "t_first") / _SECOND


def tpot(requests: pd.DataFrame) -> pd.Series:
    """Time per output token after the first, milliseconds: (t_last - t_first) / (output_tokens - 1).

    NA below two tokens. vLLM and MLPerf define it so; GuideLLM's TPOT includes the first token.
    """
    gaps = requests["output_tokens"] - 1
    return _between(requests, "t_first", "t_last") / gaps.where(gaps >= 1) / _MILLISECOND


def e2e(requests: pd.DataFrame) -> pd.Series:
    """End-to-end response time, seconds: t_last - t_submit."""
    return _between(requests, "t_submit", "t_last") / _SECOND


def routing(requests: pd.DataFrame) -> pd.Series:
    """From sending to the gateway's decision, milliseconds: t_routed - t_submit; NA for baselines."""
    return _between(requests, "t_submit", "t_routed") / _MILLISECOND


def inter_token_gaps(requests: pd.DataFrame) -> np.ndarray:
    """Gaps between received responses, pooled over the finished requests, milliseconds. AIPerf: inter-chunk latency."""
    times = requests.loc[finished(requests), "token_times"].dropna()
    gaps = [np.diff(np.asarray(t, dtype=np.int64)) for t in times]
    return np.concatenate(gaps, dtype=float) / _MILLISECOND if gaps else np.empty(0)


def measured_seconds(requests: pd.DataFrame) -> float:
    """Last completion - first submission, summed over the runs in `requests`; NA where nothing finished."""
    runs = requests.assign(t_last=requests["t_last"].where(finished(requests))).groupby("run_id")
    spans = (runs["t_last"].max() - runs["t_submit"].min()) / _SECOND
    return spans.sum(min_count=1)


def output_throughput(requests: pd.DataFrame) -> float:
    """Output tokens a second: the finished requests' tokens / measured time. NA where tokens or times are unknown.

    GenAI-Perf divides by last response - first request too; a failed request adds time but no tokens.
    """
    return _rate(requests.loc[finished(requests), "output_tokens"].sum(skipna=False), requests)


def request_throughput(requests: pd.DataFrame) -> float:
    """Finished requests a second of measured time."""
    return _rate(finished(requests).sum(), requests)


def percentile(values: Iterable, q: float) -> float:
    """The q-th percentile with linear interpolation as numpy defines it (MLPerf: sorted[floor(n q)]); NA of nothing."""
    known = pd.Series(values).dropna().to_numpy(dtype=float)
    return float(np.percentile(known, q)) if len(known) else pd.NA


_SUMMARISED = {("ttft", "s"): ttft, ("tpot", "ms"): tpot, ("e2e", "s"): e2e, ("routing", "ms"): routing}
_QUANTILES = {
    "min": 0.0,
    "p5": 0.05,
    "q1": 0.25,
    "median": 0.5,
    "q3": 0.75,
    "p95": 0.95,
    "p99": 0.99,
}  # linear, as numpy


def summarise(requests: pd.DataFrame, by: Sequence[str] = CELL) -> pd.DataFrame:
    """A row a (paper, system, source, users), ordered so; a cell's runs are pooled, percentiles never averaged.

    `by` names other columns to have a row of. Times carry their unit in the column's name, throughputs are a second; NA
    is unknown or undefined.
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
    found = {}
    for (name, unit), metric in _SUMMARISED.items():
        quantiles = _quantiles(metric(requests).to_numpy(float, na_value=np.nan), cell.to_numpy(), len(table))
        for label, values in zip(_QUANTILES, quantiles):
            found[f"{name}_{label}_{unit}"] = pd.array(values, dtype="Float64")
    return pd.concat([table, pd.DataFrame(found | _throughputs(numbered), table.index)], axis=1)


def _quantiles(values: np.ndarray, cell: np.ndarray, cells: int) -> np.ndarray:
    """_QUANTILES (rows) of the known values of each cell (columns), linear as numpy's; NaN of nothing."""
    order = np.argsort(cell, kind="stable")
    ends = np.cumsum(np.bincount(cell, minlength=cells))
    found = np.full((len(_QUANTILES), cells), np.nan)
    for i, mine in enumerate(np.split(values[order], ends[:-1])):
        known = mine[~np.isnan(mine)]
        if len(known):
            found[:, i] = np.quantile(known, list(_QUANTILES.values()))
    return found


def _throughputs(numbered: pd.DataFrame) -> dict[str, pd.Series]:
    """`output_throughput` and `request_throughput` of each cell, all cells at once."""
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
