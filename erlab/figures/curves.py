"""A metric over concurrent users, one line a system: what Figs. 5 to 7 share. A panel a paper version and source."""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from erlab import metrics, selection
from erlab.errors import ErlabError
from erlab.figures import style
from erlab.records import Records


def summary(records: Records, *columns: str) -> pd.DataFrame:
    """`metrics.summarise` of Table I's systems: the cell, requests, failed and the named columns."""
    frame = metrics.summarise(selection.systems(records))[[*metrics.CELL, "requests", "failed", *columns]]
    frame = frame.dropna(subset=list(columns)).reset_index(drop=True)
    if frame.empty:
        raise ErlabError(f"No finished request has what {columns[0]} needs.")
    return frame


def draw(records: Records, frame: pd.DataFrame, y: str, label: str, band: tuple[str, str] | None = None) -> Figure:
    """Lines of `y` over users, the columns `band` (lower, upper) shaded.

    Logarithmic, since the systems differ by an order of magnitude.
    """

    def lines(ax: Axes, part: pd.DataFrame, looks: dict[str, style.Look]) -> None:
        for system, rows in part.groupby("system"):
            look, x = looks[system], rows["users"].to_numpy(float)
            if band:
                low, high = (rows[c].to_numpy(float) for c in band)
                ax.fill_between(x, low, high, color=look.color, alpha=0.15, linewidth=0)
            ax.plot(x, rows[y].to_numpy(float), color=look.color, marker=look.marker, linestyle=look.dash)
        style.users_axis(ax, sorted(part["users"].unique()))
        style.log_values(ax)

    return panels(records, frame, label, lines, style.COLUMN, 2.6)


def panels(records: Records, frame: pd.DataFrame, label: str, draw: Callable, width: float, height: float) -> Figure:
    """One panel a (paper, source) of `frame`, side by side; `draw(ax, rows, looks)` fills a panel."""
    requests = selection.systems(records)
    looks = style.looks(requests["system"])
    parts = list(frame.groupby(["paper", "source"], dropna=False))
    versions = frame["paper"].nunique(dropna=False)
    fig = style.figure(width if len(parts) == 1 else style.DOUBLE, height)
    axes = fig.subplots(1, len(parts), squeeze=False)[0]
    for ax, ((version, source), rows) in zip(axes, parts):
        draw(ax, rows, looks)
        if len(parts) > 1:
            ax.set_title(source if pd.isna(version) or versions == 1 else f"{source} (paper {version})")
    axes[0].set_ylabel(label)
    routers, shown = selection.router_systems(requests), sorted(frame["system"].unique())
    handles = [style.handle(looks[s], f"{s} (router)" if s in routers else s) for s in shown]
    style.legend(fig, handles, min(len(handles), 5 if fig.get_figwidth() < 5 else 9))
    style.footer(fig, records, requests)
    return fig
