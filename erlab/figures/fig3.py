"""Fig. 3: response time over users for batch limits and precisions, on half and on all of the devices (TP 4, TP 8)."""

import itertools

import pandas as pd
from matplotlib.figure import Figure, SubFigure

from erlab.errors import ErlabError
from erlab.figures import curves, style
from erlab.results import metrics, selection
from erlab.results.records import Records

CAPTION = (
    "Preliminary experiments: median response time over concurrent users for several batch limits and precisions, "
    "on half and on all of the machine."
)
_SHARES = {"half": ("half of the cores", 4), "all": ("all cores", 8)}  # of the laptop's, and what it plays


def data(records: Records) -> pd.DataFrame:
    """A row a (source, half, precision, max_batch_size, users): requests, failed, runs, median response time in s, and
    its confidence band over repeated runs."""
    requests, keys = selection.preliminary_requests(records), ["source", "half", "precision", "max_batch_size", "users"]
    frame = metrics.summarise(requests, keys)[[*keys, "requests", "failed", "runs", "e2e_median_s"]]
    frame = frame.dropna(subset="e2e_median_s")
    if frame.empty:
        raise ErlabError("No preliminary request finished.")
    return curves.banded(frame, metrics.summarise(requests, [*keys, "run_id"]), "e2e_median_s", keys)


@style.context()
def plot(records: Records) -> Figure:
    """A row a source, a panel a share of the devices; colour and filling: precision, marker and dash: batch limit."""
    frame, requests = data(records), selection.preliminary_requests(records)
    sources = list(frame.groupby("source"))
    fig = style.figure(style.DOUBLE, (4.9 if style.narrow() else 2.7) * len(sources))
    for part, (source, rows) in zip(fig.subfigures(len(sources), 1, squeeze=False)[:, 0], sources):
        _row(part, source, rows, _titles(records, requests[requests["source"] == source], source))
    style.footer(fig, records, requests)
    return fig


def _titles(records: Records, requests: pd.DataFrame, source: str) -> dict[str, str]:
    """What each share of the devices was, and which tensor parallelism it plays; CPU cores, if nothing else is said."""
    found = {}
    for half, rows in requests.groupby("half"):
        share, plays = _SHARES[half]
        sizes = selection.described(records, rows, "tensor_parallel").dropna().unique()
        on_cores = selection.described(records, rows, "cores").notna().any() or not len(sizes)
        if source == "measured" and on_cores:
            found[half] = f"{share} (plays TP {plays})"
        else:
            gpus = int(sizes[0]) if len(sizes) else plays
            found[half] = f"{gpus} GPU{'s' * (gpus > 1)}, TP {gpus}" + f" (plays TP {plays})" * (gpus != plays)
    return found


def _row(fig: SubFigure, source: str, frame: pd.DataFrame, titles: dict[str, str]) -> None:
    """One source's panels under their own legend, each with its title."""
    precisions, limits = sorted(frame["precision"].unique()), sorted(frame["max_batch_size"].unique())
    colors = dict(zip(precisions, ("#0072B2", "#D55E00", "#009E73", "#CC79A7")))
    looks = {
        (p, b): style.Look(colors[p], marker, dash, filled=p in precisions[::2])
        for b, marker, dash in zip(limits, itertools.cycle(style.MARKERS), itertools.cycle(style.DASHES))
        for p in precisions
    }
    panels = sorted(frame.groupby("half"), key=lambda panel: panel[0] != "half")
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
    # a legend fills column by column: one row a precision
    columns = min(len(limits), 2) if style.narrow() else len(limits)
    style.legend(fig, [style.handle(looks[k], f"{k[0]}, batch $\\leq$ {k[1]}") for k in looks], columns)
