"""Distribution of the time to first token and of the time per output token at one load."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from erlab.errors import ErlabError
from erlab.figures import curves, style
from erlab.results import metrics, selection
from erlab.results.records import Records

CAPTION = "Share of the requests whose time is at most the value below, at the largest load that most systems have."
_TIMES = {"ttft_s": "Time to first token (s)", "tpot_ms": "Time per output token (ms)"}
_SHARES = np.linspace(0, 1, 101)


def data(records: Records) -> pd.DataFrame:
    """Compute the percentiles of both times, per source at the largest load that most systems have.

    A percentile is the smallest observed time that at least this share of the requests does not exceed.

    Returns:
        One row per (paper, system, source, users) and share (0 to 1): requests (finished), ttft_s, tpot_ms.
        `attrs`: see `curves.attributes`.

    Raises:
        ErlabError: No request's time to first token is known.
    """
    requests, rows = selection.systems(records), []
    times = requests.assign(ttft_s=metrics.ttft(requests), tpot_ms=metrics.tpot(requests)).dropna(subset="ttft_s")
    if times.empty:
        raise ErlabError("No finished request has what ttft_s needs.")
    for _, part in times.groupby(["paper", "source"], dropna=False):
        systems = part.groupby("users")["system"].nunique()
        part = part[part["users"] == systems[systems == systems.max()].index.max()]
        for cell, of_system in part.groupby(curves.keys(part), dropna=False):
            known = {name: of_system[name].dropna().to_numpy(float) for name in _TIMES}
            quantiles = {name: np.quantile(v, _SHARES, method="inverted_cdf") if len(v) else pd.NA for name, v in known.items()}
            named = dict(zip(curves.keys(part), cell))
            rows.append(pd.DataFrame(named | {"requests": len(of_system), "share": _SHARES} | quantiles))
    table = pd.concat(rows, ignore_index=True)
    table.attrs = dict(curves.attributes(records))
    return table


def plot(table: pd.DataFrame) -> Figure:
    """Draw one panel per source and time, one line per system."""
    return curves.grid(table, list(_TIMES), _lines)


def _lines(ax: Axes, rows: pd.DataFrame, column: str, looks: curves.Looks) -> None:
    for i, (key, line) in enumerate(curves.series(rows)):
        values = line[column].to_numpy(float, na_value=np.nan)
        ax.plot(values, line["share"], markevery=(4 + 3 * i, 20), **looks[key].line())
    style.log_values(ax, "x")
    users = rows["users"].iloc[0]
    ax.set(xlabel=_TIMES[column], ylabel="Requests", title=f"{users:,} user{'s' * (users > 1)}", ylim=(0, 1.02))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
