"""Fig. 5: median time per output token over users, with its quartiles."""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import curves
from erlab.results.records import Records

CAPTION = (
    "Median time per output token over concurrent users. Pale shade: interquartile range. Darker shade, if runs were "
    "repeated: 95 % confidence band of the median."
)
_SPREAD = ("tpot_q1_ms", "tpot_q3_ms")


def data(records: Records) -> pd.DataFrame:
    """Summarise the median and quartiles of the time per output token (ms); see `curves.summary`."""
    return curves.summary(records, "tpot_median_ms", *_SPREAD)


def plot(table: pd.DataFrame) -> Figure:
    """Draw the median with the interquartile range shaded."""
    return curves.draw(table, "tpot_median_ms", "Time per output token (ms)", _SPREAD)
