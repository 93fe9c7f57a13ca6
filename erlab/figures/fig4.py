"""Fig. 4: time to first token over users, as medians and boxes per system and load."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.results.records import Records

CAPTION = (
    "Time to first token over concurrent users. Lines: medians. Boxes: first to third quartile. Whiskers: 5th to 95th "
    "percentile. Shade along a line, if runs were repeated: 95 % confidence band of the median."
)
_BOX = {"whislo": "ttft_p5_s", "q1": "ttft_q1_s", "med": "ttft_median_s", "q3": "ttft_q3_s", "whishi": "ttft_p95_s"}


def data(records: Records) -> pd.DataFrame:
    """Summarise minimum, quartiles, 5th and 95th percentile of the time to first token (s); see `curves.summary`."""
    others = [column for column in ("ttft_min_s", *_BOX.values()) if column != "ttft_median_s"]
    return curves.summary(records, "ttft_median_s", *others)


def plot(table: pd.DataFrame) -> Figure:
    """Draw the boxes of all systems side by side at each load."""
    return curves.panels(table, "Time to first token (s)", _boxes, style.DOUBLE, 2.6)


def _boxes(ax: Axes, rows: pd.DataFrame, looks: curves.Looks) -> None:
    loads, series, scale = sorted(rows["users"].unique()), list(curves.series(rows)), style.scale()
    pitch = 0.8 / len(series)
    for i, (key, line) in enumerate(series):
        look = looks[key]
        x = [loads.index(n) + (i - (len(series) - 1) / 2) * pitch for n in line["users"]]
        boxes = [{k: float(v) for k, v in zip(_BOX, box)} for box in line[list(_BOX.values())].itertuples(index=False)]
        thin = dict(color=look.color, linewidth=0.8 * scale)
        ax.bxp(boxes, x, widths=pitch * 0.8, showfliers=False, manage_ticks=False, patch_artist=True, capwidths=0,
               boxprops=dict(facecolor=look.color + "44", edgecolor=look.color, linewidth=0.7 * scale),
               medianprops=thin, whiskerprops=thin, capprops=thin)  # fmt: skip
        curves.shade(ax, line, look.color, x)
        sizes = dict(markersize=3.2 * scale, linewidth=0.9 * scale)
        ax.plot(x, line["ttft_median_s"].astype(float), **look.line(), **sizes)
    for edge in range(1, len(loads)):
        ax.axvline(edge - 0.5, color="#e4e4e4", linewidth=0.5)
    ax.grid(False, axis="x")
    step = -(-len(loads) // style.labels_beside(ax))  # more labels would overlap
    ax.set_xticks(range(len(loads)), ["" if i % step else f"{n:g}" for i, n in enumerate(loads)])
    ax.set(xlabel="Concurrent users", xlim=(-0.5, len(loads) - 0.5))
    style.log_values(ax)
