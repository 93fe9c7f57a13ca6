"""Timeline of one run: a bar per request, and the requests in flight, per expert."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from erlab.errors import ErlabError
from erlab.figures import style
from erlab.results import metrics, selection
from erlab.results.records import Records

CAPTION = (
    "One run: one bar per finished request, in the order of submission, from its submission to its last token; below, "
    "the requests in flight. One panel per expert. Records do not tell apart a request's wait in the engine's queue "
    "and its prefill."
)
_MOST = 5000  # requests: bars of more would hide one another
_PARTS = {  # from, to: label and colour, which differ in lightness
    ("submitted_s", "routed_s"): ("routing", "#000000"),
    ("routed_s", "sent_s"): ("queued in the gateway", "#CC79A7"),
    ("sent_s", "first_s"): ("queued at the engine, prefill", "#F0C060"),
    ("first_s", "last_s"): ("decode", "#0072B2"),
}


def data(records: Records) -> pd.DataFrame:
    """Choose a run and list its finished requests.

    The run is of the first router system (else of the first system) in the order of names, measured if there is such a
    run, at the largest load with at most 5,000 requests.

    Returns:
        One row per finished request: run_id, paper, system, source, users, expert, row (its place in the panel), and
        seconds since the start of the run: submitted_s, routed_s, sent_s (end of the gateway's queue), first_s, last_s.
        An unknown routed_s or sent_s equals the time before. `attrs`: title, provenance.

    Raises:
        ErlabError: No request's times are known.
    """
    requests = selection.systems(records)
    known = requests[metrics.finished(requests)].dropna(subset=["t_submit", "t_first", "t_last"])
    if known.empty:
        raise ErlabError("No finished request has t_submit, t_first and t_last.")
    routers = selection.router_systems(known)
    runs = known.groupby(["run_id", "system", "source", "users"]).size().rename("requests").reset_index()
    runs = runs.assign(large=runs["requests"] > _MOST, baseline=~runs["system"].isin(routers))
    runs["order"] = np.where(runs["large"], runs["requests"], -runs["users"])
    run = runs.sort_values(["baseline", "system", "source", "large", "order", "run_id"]).iloc[0]
    rows = known[known["run_id"] == run["run_id"]].sort_values(["expert", "t_submit"], kind="stable")
    routed = rows["t_routed"].fillna(rows["t_submit"])
    times = {"submitted_s": rows["t_submit"], "routed_s": routed, "sent_s": routed + rows["queue_ns"].fillna(0)}
    times |= {"first_s": rows["t_first"], "last_s": rows["t_last"]}
    table = rows[["run_id", "paper", "system", "source", "users", "expert"]].assign(
        row=rows.groupby("expert", dropna=False).cumcount(), **{n: t.astype(float) / 1e9 for n, t in times.items()}
    )
    table = table.reset_index(drop=True)
    users = f"{run['users']:,} user{'s' * (run['users'] > 1)}"
    table.attrs = {
        "title": f"{run['system']}, {run['source']}, {users}, {len(rows):,} requests",
        "provenance": style.provenance(records, rows),
    }
    return table


@style.context()
def plot(table: pd.DataFrame) -> Figure:
    """Draw the bars of each expert above its requests in flight."""
    experts = list(table.groupby("expert", dropna=False))
    columns = min(len(experts), 2 if style.narrow() else 4)
    lines = -(-len(experts) // columns)
    fig = style.figure(style.DOUBLE, 0.7 + 2.1 * lines)
    heights = [2.2, 1] * lines
    axes = fig.subplots(2 * lines, columns, sharex=True, squeeze=False, height_ratios=heights)
    most = max(_in_flight(rows)[1].max() for _, rows in experts)
    for i, (expert, rows) in enumerate(experts):
        line, column = divmod(i, columns)
        bars, flight = axes[2 * line, column], axes[2 * line + 1, column]
        for (start, end), (_, color) in _PARTS.items():
            bars.hlines(rows["row"], rows[start], rows[end], color=color, linewidth=_width(fig, lines, len(rows)))
        times, count = _in_flight(rows)
        flight.fill_between(times, count, step="post", color="#888888", linewidth=0)
        bars.set(ylim=(len(rows) - 0.2, -0.8), title="" if pd.isna(expert) else expert)
        flight.set(ylim=(0, most * 1.05), xlim=(0, table["last_s"].max()))
        flight.set_xlabel("Time (s)" if line == (len(experts) - 1 - column) // columns else "")
        flight.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        bars.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if column == 0:
            bars.set_ylabel("Request")
            flight.set_ylabel("In flight")
    for ax in axes[2 * lines - 2 :, len(experts) - columns * (lines - 1) :].ravel():
        ax.set_axis_off()
    shown = {p: look for p, look in _PARTS.items() if (table[p[1]] > table[p[0]]).any()}
    style.legend(fig, [Patch(color=color, label=label) for label, color in shown.values()])
    fig.legends[0].set_title(table.attrs["title"])
    style.note(fig, table.attrs["provenance"])
    return fig


def _width(fig: Figure, lines: int, requests: int) -> float:
    """Return the width in points of bars that fill most of a panel."""
    return min(max(72 * fig.get_figheight() / lines * 0.4 / requests, 0.35), 3.0) * style.scale()


def _in_flight(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the times at which a request starts or ends, and the number in flight from then on."""
    times = np.concatenate([rows["submitted_s"], rows["last_s"]])
    change = np.repeat([1, -1], len(rows))
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(change[order])
