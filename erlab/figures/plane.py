"""Latency over throughput: one curve per system over its loads, Pareto front, and MLPerf's limits."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from erlab.errors import ErlabError
from erlab.figures import curves, style
from erlab.results.limits import INTERACTIVE, MLPERF
from erlab.results.records import Records

CAPTION = (
    "99th percentiles of the time to first token and of the time per output token over the output throughput; a curve "
    "joins the loads of a system, its first load has the larger marker. Thick: Pareto front, no system has more "
    "throughput at less latency. Lines across: MLPerf's limits for Llama 2 70B."
)
_TIMES = {"ttft_p99_s": "p99 time to first token (s)", "tpot_p99_ms": "p99 time per output token (ms)"}
_LIMITS = {MLPERF: "--", INTERACTIVE: ":"}


def data(records: Records) -> pd.DataFrame:
    """Summarise throughput (tokens/s) and 99th percentiles.

    Returns:
        One row per (paper, system, source, users): requests, failed, runs, output_throughput, and for both times the
        percentile and whether the cell is on the Pareto front of its version and source. `attrs`: see
        `curves.attributes`.

    Raises:
        ErlabError: No finished request has the metrics.
    """
    table = curves.cells(records)
    table = table[[*curves.keys(table), "requests", "failed", "runs", "output_throughput", *_TIMES]]
    table = table.dropna(subset=["output_throughput", "ttft_p99_s"]).reset_index(drop=True)
    if table.empty:
        raise ErlabError("No finished request has what output_throughput needs.")
    for column in _TIMES:
        groups = [_front(rows, column) for _, rows in table.groupby(["paper", "source"], dropna=False)]
        table[f"{column.partition('_')[0]}_pareto"] = pd.concat(groups)
    table.attrs = dict(curves.attributes(records))
    return table


def _front(rows: pd.DataFrame, column: str) -> pd.Series:
    """Return whether no other row has at least the throughput at less latency."""
    known = rows.dropna(subset=column).sort_values(["output_throughput", column], ascending=[False, True])
    times = known[column].astype(float)
    best = times < times.cummin().shift(fill_value=float("inf"))
    return best.reindex(rows.index, fill_value=False)


def plot(table: pd.DataFrame) -> Figure:
    """Draw one panel per source and time, one curve per system."""
    width = 1.1 * style.scale()
    handles = [Line2D([], [], color="#bbbbbb", linewidth=4 * width, label="Pareto front")]
    handles += [Line2D([], [], color="black", linewidth=width, linestyle=dash, label=f"{limits.name} limit")
                for limits, dash in _LIMITS.items()]  # fmt: skip
    return curves.grid(table, list(_TIMES), _lines, handles)


def _lines(ax: Axes, rows: pd.DataFrame, column: str, looks: curves.Looks) -> None:
    width = 1.1 * style.scale()
    front = rows[rows[f"{column.partition('_')[0]}_pareto"]].sort_values("output_throughput")
    x, y = (front[name].to_numpy(float) for name in ("output_throughput", column))
    ax.plot(x, y, color="#bbbbbb", linewidth=4 * width, solid_capstyle="round", zorder=1)
    for key, line in curves.series(rows):
        x, y = (line[name].to_numpy(float, na_value=float("nan")) for name in ("output_throughput", column))
        ax.plot(x, y, **looks[key].line())
        look = looks[key].line() | {"linestyle": "", "markersize": 6.5 * style.scale()}
        ax.plot(x[:1], y[:1], **look)
    for limits, dash in _LIMITS.items():
        value = limits.ttft_s if column == "ttft_p99_s" else limits.tpot_ms
        ax.axhline(value, color="black", linewidth=width, linestyle=dash, zorder=1.5)
    style.log_values(ax, "x")
    style.log_values(ax)
    ax.set(xlabel="Throughput (tokens/s)", ylabel=_TIMES[column])
