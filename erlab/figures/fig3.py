"""Fig. 3: response time of the preliminary experiments over users."""

import itertools

import pandas as pd
from matplotlib.figure import Figure, SubFigure

from erlab.errors import ErlabError
from erlab.figures import curves, style
from erlab.results import metrics, selection
from erlab.results.records import Records

CAPTION = (
    "Preliminary experiments: median response time over concurrent users for several batch limits and precisions, "
    "on half and on all of the devices."
)
_SHARES = {"half": ("half of the cores", 4), "all": ("all cores", 8)}  # on a laptop; tensor parallelism in the paper


def data(records: Records) -> pd.DataFrame:
    """Summarise the response time of the preliminary experiments.

    Returns:
        One row per (source, half, precision, max_batch_size, users): requests, failed, runs, median response time (s)
        and its confidence band over repeated runs. `attrs`: titles (source: half: devices), provenance.

    Raises:
        ErlabError: No request of the preliminary experiments finished.
    """
    requests, keys = selection.preliminary_requests(records), ["source", "half", "precision", "max_batch_size", "users"]
    table = metrics.summarise(requests, keys)[[*keys, "requests", "failed", "runs", "e2e_median_s"]]
    table = table.dropna(subset="e2e_median_s")
    if table.empty:
        raise ErlabError("No preliminary request finished.")
    table = curves.banded(table, metrics.summarise(requests, [*keys, "run_id"]), "e2e_median_s", keys)
    table.attrs = {
        "titles": {source: _titles(records, rows, source) for source, rows in requests.groupby("source")},
        "provenance": style.provenance(records, requests),
    }
    return table


def _titles(records: Records, requests: pd.DataFrame, source: str) -> dict[str, str]:
    """Name the devices of each half, and their tensor parallelism in the paper."""
    titles = {}
    for half, rows in requests.groupby("half"):
        share, paper_tp = _SHARES[half]
        sizes = selection.described(records, rows, "tensor_parallel").dropna().unique()
        on_cores = selection.described(records, rows, "cores").notna().any() or not len(sizes)
        if source == "measured" and on_cores:
            titles[half] = f"{share} (stands for TP {paper_tp})"
        else:
            gpus = int(sizes[0]) if len(sizes) else paper_tp
            titles[half] = f"{gpus} GPU{'s' * (gpus > 1)}, TP {gpus}"
            titles[half] += f" (stands for TP {paper_tp})" * (gpus != paper_tp)
    return titles


@style.context()
def plot(table: pd.DataFrame) -> Figure:
    """Draw one row of panels per source, one panel per half.

    Colour and filling show the precision, marker and dash the batch limit.
    """
    sources = list(table.groupby("source"))
    fig = style.figure(style.DOUBLE, (4.9 if style.narrow() else 2.7) * len(sources))
    for part, (source, rows) in zip(fig.subfigures(len(sources), 1, squeeze=False)[:, 0], sources):
        _row(part, source, rows, table.attrs["titles"][source])
    style.note(fig, table.attrs["provenance"])
    return fig


def _row(fig: SubFigure, source: str, table: pd.DataFrame, titles: dict[str, str]) -> None:
    """Draw the panels of one source, under a legend of their own."""
    precisions, limits = sorted(table["precision"].unique()), sorted(table["max_batch_size"].unique())
    colors = dict(zip(precisions, ("#0072B2", "#D55E00", "#009E73", "#CC79A7")))
    looks = {
        (p, b): style.Look(colors[p], marker, dash, filled=p in precisions[::2])
        for b, marker, dash in zip(limits, itertools.cycle(style.MARKERS), itertools.cycle(style.DASHES))
        for p in precisions
    }
    panels = sorted(table.groupby("half"), key=lambda panel: panel[0] != "half")
    shape = (len(panels), 1) if style.narrow() else (1, len(panels))
    axes = fig.subplots(*shape, squeeze=False, sharey=True).ravel()
    for ax, (half, rows) in zip(axes, panels):
        for key, line in rows.groupby(["precision", "max_batch_size"]):
            look = looks[key]
            curves.shade(ax, line, look.color)
            ax.plot(line["users"].astype(float), line["e2e_median_s"].astype(float), **look.line())
        style.users_axis(ax, sorted(rows["users"].unique()))
        ax.set_title(f"{source}: {titles[half]}")
    style.log_values(axes[0])
    for ax in axes if style.narrow() else axes[:1]:
        ax.set_ylabel("Median response time (s)")
    # a legend fills column by column: one row per precision
    columns = min(len(limits), 2) if style.narrow() else len(limits)
    style.legend(fig, [style.handle(looks[k], f"{k[0]}, batch $\\leq$ {k[1]}") for k in looks], columns)
