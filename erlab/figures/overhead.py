"""Gateway overhead over users, measured with emulated experts (`erlab.experiments.overhead`)."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from erlab import textfiles
from erlab.experiments import overhead_tables
from erlab.figures import style
from erlab.paths import Folders
from erlab.results.records import Records

_LOOKS = {"direct": ("#555555", "s", "without the gateway"), "gateway": ("#D55E00", "D", "with the gateway")}
_DASHES = {50: ("-", "median"), 99: ((0, (4, 1.5)), "99th percentile")}
_PANELS = {"ttft": "Time to first token (ms)", "outside": "Part outside of the experts (ms)"}


def data(records: Records) -> pd.DataFrame:
    """Compare runs with and without the gateway (`overhead_tables.compare`); `attrs`: provenance."""
    table = overhead_tables.compare(records)
    table.attrs = {"provenance": style.provenance(records, records.requests)}
    return table


@style.context()
def plot(table: pd.DataFrame) -> Figure:
    """Draw the time to first token with and without the gateway, and its part outside of the experts."""
    fig = style.figure(style.DOUBLE, 2.6, diagram=True)
    for ax, (name, label) in zip(fig.subplots(1, len(_PANELS)), _PANELS.items()):
        for way, (color, marker, _) in _LOOKS.items():
            rows = table[table["way"] == way]
            for q, (dash, _) in _DASHES.items():
                y = rows[f"{name}_p{q}_ms"].astype(float)
                ax.plot(rows["users"], y, color=color, marker=marker, linestyle=dash)
        style.users_axis(ax, sorted(table["users"].unique()))
        style.log_values(ax)
        ax.set_ylabel(label)
    handles = [Line2D([], [], color=color, marker=marker, label=label) for color, marker, label in _LOOKS.values()]
    handles += [Line2D([], [], color="black", linestyle=dash, label=label) for dash, label in _DASHES.values()]
    style.legend(fig, handles)
    style.note(fig, table.attrs["provenance"])
    return fig


def show(folders: Folders, records: Records) -> Figure | str:
    """Draw the overhead; write the figure and its numbers beside the records."""
    if records.requests.empty:
        return "Nothing was measured here."
    table, folder = data(records), folders.overhead.root
    textfiles.save(folder / "added.csv", overhead_tables.added(records).reset_index().to_csv(index=False))
    return style.save(plot(table), folder, "overhead", table)
