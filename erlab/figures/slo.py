"""Share of the requests within MLPerf's limits over users."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from erlab.figures import curves, style
from erlab.results import limits, selection
from erlab.results.records import Records

CAPTION = (
    "Requests within MLPerf's limits for Llama 2 70B (server: time to first token 2 s, time per output token 200 ms) "
    "over concurrent users; a failed request is not within them. Thin lines: 95 % intervals."
)
_Z = 1.96  # of the normal distribution, 95 %


def data(records: Records) -> pd.DataFrame:
    """Count the requests within the limits (`limits.within`).

    Returns:
        One row per (paper, system, source, users): requests, within (share), and its 95 % interval (Wilson's) for
        independent requests. `attrs`: see `curves.attributes`.
    """
    requests = selection.systems(records)
    cells = requests.assign(within=limits.within(requests, limits.MLPERF))
    cells = cells.groupby(curves.keys(requests), dropna=False)["within"].agg(requests="size", within="mean")
    table = cells.reset_index().astype({"within": float})
    n, share = table["requests"], table["within"]
    middle, scale = share + _Z**2 / (2 * n), 1 + _Z**2 / n
    half = _Z * np.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
    bounds = ((middle + sign * half).div(scale).clip(0, 1) for sign in (-1, 1))
    table = table.assign(**dict(zip(curves.BAND, bounds)))
    table.attrs = dict(curves.attributes(records))
    return table


def plot(table: pd.DataFrame) -> Figure:
    """Draw the share over users, one line per system."""
    return curves.panels(table, "Within MLPerf's limits", _lines, style.COLUMN, 2.6)


def _lines(ax: Axes, rows: pd.DataFrame, looks: curves.Looks) -> None:
    for key, line in curves.series(rows):
        x = line["users"].to_numpy(float)
        ax.vlines(x, *line[curves.BAND].T.to_numpy(), color=looks[key].color, linewidth=0.8 * style.scale())
        ax.plot(x, line["within"], **looks[key].line())
    style.users_axis(ax, sorted(rows["users"].unique()))
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
