"""Fig. 5: median time per output token over users with the interquartile range shaded."""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.results.records import Records

CAPTION = (
    "Median time per output token over concurrent users; the pale shade spans the quartiles, a darker one, where runs "
    "were repeated, is the 95 % confidence band over them."
)
_SPREAD = ("tpot_q1_ms", "tpot_q3_ms")


def data(records: Records) -> pd.DataFrame:
    """A row a (paper, system, source, users): requests, failed, runs, quartiles of the time per output token, ms."""
    return curves.summary(records, "tpot_median_ms", *_SPREAD)


@style.context()
def plot(records: Records) -> Figure:
    return curves.draw(records, data(records), "tpot_median_ms", "Time per output token (ms)", _SPREAD)
