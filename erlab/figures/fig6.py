"""Fig. 6: median end-to-end response time over users (that this is the paper's Fig. 6 is an assumption)."""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.results.records import Records

CAPTION = (
    "Median end-to-end response time over concurrent users (shade, where runs were repeated: the 95 % "
    "confidence band over them)."
)


def data(records: Records) -> pd.DataFrame:
    """A row a (paper, system, source, users): requests, failed, runs, median response time, s."""
    return curves.summary(records, "e2e_median_s")


@style.context()
def plot(records: Records) -> Figure:
    return curves.draw(records, data(records), "e2e_median_s", "Median response time (s)")
