"""A metric over concurrent users, one line a system: what Figs. 4 to 7 share.

A panel a paper version and source; records that are overlaid (`figures.overlay`) share a panel.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from erlab.errors import ErlabError
from erlab.figures import style
from erlab.results import confidence, metrics, selection
from erlab.results.records import Records

LABEL = "label"  # a column of requests that are overlaid: which of the records they are from
BAND = ["band_low", "band_high"]
Lines = dict[tuple[str, str | None], style.Look]  # the look of each (system, label)


@functools.lru_cache(maxsize=2)
def cells(records: Records) -> pd.DataFrame:
    """`metrics.summarise` of Table I's systems; kept, since several figures show it."""
    requests = selection.systems(records)
    return metrics.summarise(requests, _cell(requests))


@functools.lru_cache(maxsize=2)
def _runs(records: Records) -> pd.DataFrame:
    """The same of each run alone."""
    requests = selection.systems(records)
    return metrics.summarise(requests, [*_cell(requests), "run_id"])


def _cell(table: pd.DataFrame) -> list[str]:
    return [*metrics.CELL, LABEL] if LABEL in table else metrics.CELL


def summary(records: Records, *columns: str) -> pd.DataFrame:
    """`metrics.summarise` of Table I's systems: the cell, requests, failed, runs and the named columns.

    band_low and band_high are the 95 % confidence band of the first column where a cell has several runs
    (`confidence.bands`), else NA.
    """
    found = cells(records)
    cell = _cell(found)
    frame = found[[*cell, "requests", "failed", "runs", *columns]].dropna(subset=list(columns))
    if frame.empty:
        raise ErlabError(f"No finished request has what {columns[0]} needs.")
    return banded(frame, _runs(records), columns[0], cell)


def banded(frame: pd.DataFrame, runs: pd.DataFrame, column: str, cell: list[str]) -> pd.DataFrame:
    """The frame with the confidence band of a column as BAND; `runs` are the same cells' runs, each alone."""
    bands = confidence.bands(frame, runs, column, cell).rename(columns=dict(zip(("low", "high"), BAND)))
    if bands.empty:
        return frame.reset_index(drop=True).assign(**{name: pd.array([pd.NA] * len(frame), "Float64") for name in BAND})
    return frame.merge(bands, on=cell, how="left")


def shade(ax: Axes, rows: pd.DataFrame, color: str, at: Sequence[float] | None = None) -> None:
    """The confidence band of a line over users, or over the places `at`, where it has one."""
    low, high = (rows[c].to_numpy(float, na_value=float("nan")) for c in BAND)
    if rows[BAND].notna().any(axis=None):
        x = rows["users"].to_numpy(float) if at is None else at
        ax.fill_between(x, low, high, color=color, alpha=0.3, linewidth=0)


def draw(records: Records, frame: pd.DataFrame, y: str, label: str, spread: tuple[str, str] | None = None) -> Figure:
    """Lines of `y` over users, their confidence band and, paler, the columns `spread` (lower, upper) shaded.

    Logarithmic, since the systems differ by an order of magnitude.
    """

    def lines(ax: Axes, part: pd.DataFrame, looks: Lines) -> None:
        for key, rows in series(part):
            look, x = looks[key], rows["users"].to_numpy(float)
            if spread:
                low, high = (rows[c].to_numpy(float) for c in spread)
                ax.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)
            shade(ax, rows, look.color)
            ax.plot(x, rows[y].to_numpy(float), **look.line())
        style.users_axis(ax, sorted(part["users"].unique()))
        style.log_values(ax)

    return panels(records, frame, label, lines, style.COLUMN, 2.6)


def series(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str | None], pd.DataFrame]]:
    """The rows of each line: of each (system, label); the label is None where nothing is overlaid."""
    if LABEL in frame:
        yield from frame.groupby(["system", LABEL])
    else:
        yield from (((system, None), rows) for system, rows in frame.groupby("system"))


def panels(records: Records, frame: pd.DataFrame, label: str, draw: Callable, width: float, height: float) -> Figure:
    """One panel a (paper, source) of `frame`, side by side or, where the figure is narrow or one panel as wide as a
    page, below one another.

    `draw(ax, rows, looks)` fills a panel. Overlaid records have one panel a version of the paper.
    """
    requests = selection.systems(records)
    looks, labels = _looks(requests, frame)
    overlaid, versions = LABEL in frame, frame["paper"].nunique(dropna=False)
    parts = list(frame.groupby(["paper"] if overlaid else ["paper", "source"], dropna=False))
    stacked = style.narrow() or width == style.DOUBLE
    shape = (len(parts), 1) if stacked else (1, len(parts))
    fig = style.figure(width if len(parts) == 1 else style.DOUBLE, height * shape[0])
    axes = fig.subplots(*shape, squeeze=False).ravel()
    for ax, ((version, *source), rows) in zip(axes, parts):
        draw(ax, rows, looks)
        words = [*source, *([] if pd.isna(version) or versions == 1 else [f"paper {version}"])]
        ax.set_title(", ".join(words) if len(parts) > 1 else "")
    for ax in axes[: None if stacked else 1]:
        ax.set_ylabel(label)
    routers, shown = selection.router_systems(requests), sorted(frame["system"].unique())
    plain = style.looks(requests["system"].unique())
    handles = [style.handle(plain[s], f"{s} (router)" if s in routers else s) for s in shown]
    handles += [Line2D([], [], **(style.overlaid(_GREY, i).line() | {"label": name})) for i, name in enumerate(labels)]
    style.legend(fig, handles)
    style.footer(fig, records, requests)
    return fig


_GREY = style.Look(style.GREY, "o", "-")


def _looks(requests: pd.DataFrame, frame: pd.DataFrame) -> tuple[Lines, list[str]]:
    """Each line's look, and the labels of overlaid records."""
    plain = style.looks(requests["system"].unique())
    if LABEL not in frame:
        return {(system, None): look for system, look in plain.items()}, []
    labels = list(dict.fromkeys(requests[LABEL]))
    return {(s, name): style.overlaid(plain[s], i) for s in plain for i, name in enumerate(labels)}, labels
