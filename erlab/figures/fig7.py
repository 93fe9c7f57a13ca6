"""Fig. 7: output throughput of the whole system over users.

This content is assumed: the caption of the paper's Fig. 7 is not known.
"""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.results.records import Records

CAPTION = (
    "System throughput over concurrent users: output tokens of finished requests per second. Shade, if runs were "
    "repeated: 95 % confidence band."
)


def data(records: Records) -> pd.DataFrame:
    """Summarise the output throughput (tokens/s); see `curves.summary`."""
    return curves.summary(records, "output_throughput")


def plot(table: pd.DataFrame) -> Figure:
    """Draw the output throughput, on linear axes if `style.using` asks for them."""
    return curves.draw(table, "output_throughput", "Throughput (tokens/s)", linear=style.linear())
