"""What the gateway costs over users, on emulated experts: the picture of `erlab.experiments.overhead.compare`."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from erlab import textfiles
from erlab.experiments import overhead
from erlab.figures import style
from erlab.paths import Folders
from erlab.results.records import Records

_LOOKS = {"direct": ("#555555", "s", "without the gateway"), "gateway": ("#D55E00", "D", "with the gateway")}
_DASHES = {50: ("-", "median"), 99: ((0, (4, 1.5)), "99th percentile")}
_PANELS = {"ttft": "Time to first token, ms", "outside": "Of it outside the experts, ms"}


@style.context()
def plot(frame: pd.DataFrame, note: str) -> Figure:
    """Times to first token over users with and without the gateway, and the part that the experts don't take."""
    fig = style.figure(style.DOUBLE, 2.6, diagram=True)
    for ax, (name, label) in zip(fig.subplots(1, len(_PANELS)), _PANELS.items()):
        for way, (color, marker, _) in _LOOKS.items():
            rows = frame[frame["way"] == way]
            for q, (dash, _) in _DASHES.items():
                y = rows[f"{name}_p{q}_ms"].astype(float)
                ax.plot(rows["users"], y, color=color, marker=marker, linestyle=dash)
        style.users_axis(ax, sorted(frame["users"].unique()))
        style.log_values(ax)
        ax.set_ylabel(label)
    handles = [Line2D([], [], color=color, marker=marker, label=label) for color, marker, label in _LOOKS.values()]
    handles += [Line2D([], [], color="black", linestyle=dash, label=label) for dash, label in _DASHES.values()]
    style.legend(fig, handles)
    style.note(fig, note)
    return fig


def show(folders: Folders, found: Records) -> Figure | str:
    """The picture of `compare(found)`; it and its numbers are kept beside the records."""
    if found.requests.empty:
        return "Nothing was measured here."
    frame, folder = overhead.compare(found), folders.overhead.root
    picture = plot(frame, style.provenance(found, found.requests))
    textfiles.save(folder / "added.csv", overhead.added(found).reset_index().to_csv(index=False))
    return style.save(picture, folder, "overhead", frame)
