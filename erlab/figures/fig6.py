"""Fig. 6: median end-to-end response time over users (content of the paper's Fig. 6 assumed)."""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import curves
from erlab.results.records import Records

CAPTION = (
    "Median end-to-end response time over concurrent users. Shade, if runs were repeated: 95 % confidence band of the "
    "median."
)


def data(records: Records) -> pd.DataFrame:
    """Summarise the median response time (s); see `curves.summary`."""
    return curves.summary(records, "e2e_median_s")


def plot(table: pd.DataFrame) -> Figure:
    """Draw the median response time."""
    return curves.draw(table, "e2e_median_s", "Median response time (s)")
