"""Fig. 7: output throughput of the whole system over users (that this is the paper's Fig. 7 is an assumption)."""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.results.records import Records

CAPTION = (
    "System throughput over concurrent users: output tokens of finished requests a second "
    "(shade, where runs were repeated: the 95 % confidence band over them)."
)


def data(records: Records) -> pd.DataFrame:
    """A row a (paper, system, source, users): requests, failed, runs, output tokens a second."""
    return curves.summary(records, "output_throughput")


@style.context()
def plot(records: Records) -> Figure:
    return curves.draw(records, data(records), "output_throughput", "Throughput (tokens/s)")
