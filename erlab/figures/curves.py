"""Metric over concurrent users, one line per system: common to Figs. 4 to 7.

One panel per paper version and source; overlaid records (`figures.overlay`) share a panel.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from erlab.errors import ErlabError
from erlab.figures import style
from erlab.results import confidence, metrics, selection
from erlab.results.records import Records

LABEL = "label"  # column of overlaid requests: name of the records they belong to
BAND = ["band_low", "band_high"]
Looks = dict[tuple[str, str | None], style.Look]  # by (system, label)


@functools.lru_cache(maxsize=2)
def cells(records: Records) -> pd.DataFrame:
    """Summarise the systems of Table I (`metrics.summarise`); cached, since several figures show them."""
    requests = selection.systems(records)
    return metrics.summarise(requests, keys(requests))


@functools.lru_cache(maxsize=2)
def _runs(records: Records) -> pd.DataFrame:
    """Summarise each run of the systems of Table I."""
    requests = selection.systems(records)
    return metrics.summarise(requests, [*keys(requests), "run_id"])


def keys(table: pd.DataFrame) -> list[str]:
    """Return the columns that identify a point of a line."""
    return [*metrics.CELL, LABEL] if LABEL in table else metrics.CELL


def summary(records: Records, *columns: str) -> pd.DataFrame:
    """Select metrics of the systems of Table I, for `draw` and `panels`.

    Args:
        *columns: Columns of `metrics.summarise`; cells where one of them is unknown are left out.

    Returns:
        One row per (paper, system, source, users), and per label if records are overlaid: requests, failed, runs,
        `columns`, and the 95 % confidence band of the first column (`confidence.bands`; NA for a single run).
        `attrs`: systems, routers, labels, provenance.

    Raises:
        ErlabError: No finished request has the metrics.
    """
    table = cells(records)
    cell = keys(table)
    table = table[[*cell, "requests", "failed", "runs", *columns]].dropna(subset=list(columns))
    if table.empty:
        raise ErlabError(f"No finished request has what {columns[0]} needs.")
    table = banded(table, _runs(records), columns[0], cell)
    table.attrs = dict(attributes(records))
    return table


@functools.lru_cache(maxsize=2)
def attributes(records: Records) -> dict:
    """Return what a figure shows beside its numbers: systems, routers, labels, provenance; cached as `cells`."""
    requests = selection.systems(records)
    return {
        "systems": sorted(requests["system"].unique()),
        "routers": sorted(selection.router_systems(requests)),
        "labels": list(requests[LABEL].unique()) if LABEL in requests else [],
        "provenance": style.provenance(records, requests),
    }


def banded(table: pd.DataFrame, runs: pd.DataFrame, column: str, cell: list[str]) -> pd.DataFrame:
    """Add the confidence band of a column over repeated runs."""
    bands = confidence.bands(table, runs, column, cell).rename(columns=dict(zip(("low", "high"), BAND)))
    if bands.empty:
        return table.reset_index(drop=True).assign(**{name: pd.array([pd.NA] * len(table), "Float64") for name in BAND})
    return table.merge(bands, on=cell, how="left")


def shade(ax: Axes, rows: pd.DataFrame, color: str, x: Sequence[float] | None = None) -> None:
    """Shade a line's confidence band, if any, over `x` (None: users)."""
    low, high = (rows[c].to_numpy(float, na_value=float("nan")) for c in BAND)
    if rows[BAND].notna().any(axis=None):
        x = rows["users"].to_numpy(float) if x is None else x
        ax.fill_between(x, low, high, color=color, alpha=0.3, linewidth=0)


def draw(
    table: pd.DataFrame, y: str, label: str, spread: tuple[str, str] | None = None, linear: bool = False
) -> Figure:
    """Draw a metric over users on logarithmic (or linear) axes, with its confidence band.

    Args:
        spread: Lower and upper column of a pale shade, such as quartiles.
    """

    def lines(ax: Axes, rows: pd.DataFrame, looks: Looks) -> None:
        for key, line in series(rows):
            look, x = looks[key], line["users"].to_numpy(float)
            if spread:
                low, high = (line[c].to_numpy(float) for c in spread)
                ax.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)
            shade(ax, line, look.color)
            ax.plot(x, line[y].to_numpy(float), **look.line())
        if linear:
            ax.set(xlabel="Concurrent users", xlim=(0, None), ylim=(0, None))
        else:
            style.users_axis(ax, sorted(rows["users"].unique()))
            style.log_values(ax)

    return panels(table, label, lines, style.COLUMN, 2.6)


def series(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str | None], pd.DataFrame]]:
    """Iterate over lines: (system, label) and rows; the label is None unless records are overlaid."""
    if LABEL in table:
        yield from table.groupby(["system", LABEL])
    else:
        yield from (((system, None), rows) for system, rows in table.groupby("system"))


@style.context()
def panels(
    table: pd.DataFrame, label: str, draw: Callable[[Axes, pd.DataFrame, Looks], None], width: float, height: float
) -> Figure:
    """Draw one panel per paper version and source, or per paper version if records are overlaid.

    Panels stand side by side; they are stacked if the figure is narrow or a panel as wide as a page.
    """
    looks, parts = _looks(table), _parts(table)
    stacked = style.narrow() or width == style.DOUBLE
    shape = (len(parts), 1) if stacked else (1, len(parts))
    fig = style.figure(width if len(parts) == 1 else style.DOUBLE, height * shape[0])
    axes = fig.subplots(*shape, squeeze=False).ravel()
    for ax, (title, rows) in zip(axes, parts):
        draw(ax, rows, looks)
        ax.set_title(title if len(parts) > 1 else "")
    for ax in axes[: None if stacked else 1]:
        ax.set_ylabel(label)
    style.legend(fig, _handles(table))
    style.note(fig, table.attrs["provenance"])
    return fig


def _parts(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split a table by paper version and source, or by paper version if records are overlaid; each with its title."""
    versions, parts = table["paper"].nunique(dropna=False), []
    for (version, *source), rows in table.groupby(["paper"] if LABEL in table else ["paper", "source"], dropna=False):
        title = [*source, *([] if pd.isna(version) or versions == 1 else [f"paper {version}"])]
        parts.append((", ".join(title), rows))
    return parts


@style.context()
def grid(
    table: pd.DataFrame,
    columns: Sequence[str],
    draw: Callable[[Axes, pd.DataFrame, str, Looks], None],
    more: Sequence[Line2D] = (),
) -> Figure:
    """Draw one row of panels per paper version and source, one panel per column; all stacked if the figure is narrow.

    Args:
        draw: Draws one column of some rows.
        more: Handles that the legend has after the systems.
    """
    looks, parts = _looks(table), _parts(table)
    shape = (len(parts) * len(columns), 1) if style.narrow() else (len(parts), len(columns))
    fig = style.figure(style.DOUBLE, 2.5 * shape[0])
    panels = itertools.product(parts, columns)
    for ax, ((title, rows), column) in zip(fig.subplots(*shape, squeeze=False).ravel(), panels):
        draw(ax, rows, column, looks)
        ax.set_title(", ".join(filter(None, [title, ax.get_title()])))
    style.legend(fig, [*_handles(table), *more])
    style.note(fig, table.attrs["provenance"])
    return fig


_GREY = style.Look(style.GREY, "o", "-")


def _handles(table: pd.DataFrame) -> list[Line2D]:
    """Create the legend: a handle per system, then a grey one per label."""
    looks, routers = style.looks(table.attrs["systems"]), table.attrs["routers"]
    systems = sorted(table["system"].unique())
    handles = [style.handle(looks[s], f"{s} (router)" if s in routers else s) for s in systems]
    return handles + [style.handle(style.overlaid(_GREY, i), name) for i, name in enumerate(table.attrs["labels"])]


def _looks(table: pd.DataFrame) -> Looks:
    """Map each line to its look."""
    looks, labels = style.looks(table.attrs["systems"]), table.attrs["labels"]
    if not labels:
        return {(system, None): look for system, look in looks.items()}
    return {(s, name): style.overlaid(looks[s], i) for s in looks for i, name in enumerate(labels)}
