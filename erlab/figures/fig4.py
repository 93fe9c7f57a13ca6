"""Fig. 4: time to first token over users, medians with lines and a box a system and load."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.results.records import Records

CAPTION = (
    "Time to first token over concurrent users: medians with lines; boxes from the first to the third quartile, "
    "whiskers from the 5th to the 95th percentile (shade along a line, where runs were repeated: the 95 % confidence "
    "band of the median over them)."
)
_BOX = {"whislo": "ttft_p5_s", "q1": "ttft_q1_s", "med": "ttft_median_s", "q3": "ttft_q3_s", "whishi": "ttft_p95_s"}


def data(records: Records) -> pd.DataFrame:
    """A row a (paper, system, source, users): requests, failed, runs, box and minimum of the time to first
    token, s, and the median's confidence band over repeated runs."""
    others = [column for column in ("ttft_min_s", *_BOX.values()) if column != "ttft_median_s"]
    return curves.summary(records, "ttft_median_s", *others)


@style.context()
def plot(records: Records) -> Figure:
    """The systems' boxes stand side by side at each load; loads are evenly spaced, panels below one another."""
    return curves.panels(records, data(records), "Time to first token (s)", _boxes, style.DOUBLE, 2.6)


def _boxes(ax: Axes, rows: pd.DataFrame, looks: curves.Lines) -> None:
    loads, series, scale = sorted(rows["users"].unique()), list(curves.series(rows)), style.scale()
    pitch = 0.8 / len(series)
    for i, (key, mine) in enumerate(series):
        look = looks[key]
        at = [loads.index(n) + (i - (len(series) - 1) / 2) * pitch for n in mine["users"]]
        boxes = [{k: float(v) for k, v in zip(_BOX, box)} for box in mine[list(_BOX.values())].itertuples(index=False)]
        line = dict(color=look.color, linewidth=0.8 * scale)
        ax.bxp(boxes, at, widths=pitch * 0.8, showfliers=False, manage_ticks=False, patch_artist=True, capwidths=0,
               boxprops=dict(facecolor=look.color + "44", edgecolor=look.color, linewidth=0.7 * scale),
               medianprops=line, whiskerprops=line, capprops=line)  # fmt: skip
        curves.shade(ax, mine, look.color, at)
        thin = dict(markersize=3.2 * scale, linewidth=0.9 * scale)
        ax.plot(at, mine["ttft_median_s"].astype(float), **look.line(), **thin)
    for edge in range(1, len(loads)):
        ax.axvline(edge - 0.5, color="#e4e4e4", linewidth=0.5)
    ax.grid(False, axis="x")
    step = -(-len(loads) // style.labels_beside(ax))  # more labels would touch
    ax.set_xticks(range(len(loads)), ["" if i % step else f"{n:g}" for i, n in enumerate(loads)])
    ax.set(xlabel="Concurrent users", xlim=(-0.5, len(loads) - 0.5))
    style.log_values(ax)
