"""Fig. 4: time to first token over users, medians with lines and a box a system and load."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.records import Records

CAPTION = (
    "Time to first token over concurrent users: medians with lines; boxes from the first to the third quartile, "
    "whiskers from the 5th to the 95th percentile."
)
_BOX = {"whislo": "ttft_p5_s", "q1": "ttft_q1_s", "med": "ttft_median_s", "q3": "ttft_q3_s", "whishi": "ttft_p95_s"}


def data(records: Records) -> pd.DataFrame:
    """A row a (paper, system, source, users): requests, failed, minimum and box of the time to first token, s."""
    return curves.summary(records, "ttft_min_s", *_BOX.values())


@style.context()
def plot(records: Records) -> Figure:
    """The systems' boxes stand side by side at each load; loads are evenly spaced."""
    return curves.panels(records, data(records), "Time to first token (s)", _boxes, style.DOUBLE, 3.0)


def _boxes(ax: Axes, rows: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    loads, systems = sorted(rows["users"].unique()), sorted(rows["system"].unique())
    pitch = 0.8 / len(systems)
    for i, system in enumerate(systems):
        mine, look = rows[rows["system"] == system], looks[system]
        at = [loads.index(n) + (i - (len(systems) - 1) / 2) * pitch for n in mine["users"]]
        boxes = [{k: float(v) for k, v in zip(_BOX, box)} for box in mine[list(_BOX.values())].itertuples(index=False)]
        line = dict(color=look.color, linewidth=0.8)
        ax.bxp(boxes, at, widths=pitch * 0.8, showfliers=False, manage_ticks=False, patch_artist=True, capwidths=0,
               boxprops=dict(facecolor=look.color + "44", edgecolor=look.color, linewidth=0.7),
               medianprops=line, whiskerprops=line, capprops=line)  # fmt: skip
        ax.plot(at, mine["ttft_median_s"].astype(float), color=look.color, marker=look.marker, linestyle=look.dash,
                markersize=3.2, linewidth=0.9)  # fmt: skip
    for edge in range(1, len(loads)):
        ax.axvline(edge - 0.5, color="#e4e4e4", linewidth=0.5)
    ax.grid(False, axis="x")
    ax.set_xticks(range(len(loads)), [f"{n:g}" for n in loads])
    ax.set(xlabel="Concurrent users", xlim=(-0.5, len(loads) - 0.5))
    style.log_values(ax)
