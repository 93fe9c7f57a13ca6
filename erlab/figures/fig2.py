"""Fig. 2: distribution of input lengths, with the log-normal distribution they were drawn from."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from erlab.errors import ErlabError
from erlab.figures import style
from erlab.results import selection
from erlab.results.records import Records

CAPTION = "Input lengths of the requests (bars) and the log-normal assumed for MLPerf's Llama 2 70B data set (line)."
_BINS = 32


def data(records: Records) -> pd.DataFrame:
    """Count requests by input length.

    Returns:
        One row per source and bin [from_tokens, to_tokens): requests, density per token, and assumed_density (NA if
        unknown). `attrs`: assumed (per source, the assumed log-normal distribution, None if unknown), provenance.

    Raises:
        ErlabError: No request's input length is known.
    """
    requests = selection.systems(records).dropna(subset="input_tokens")
    if requests.empty:
        raise ErlabError("No request's input_tokens is known.")
    parts, assumed = [], {}
    for source, rows in requests.groupby("source"):
        assumed[source] = _assumed(records, rows)
        parts.append(_bins(source, rows["input_tokens"].to_numpy(dtype=int), assumed[source]))
    table = pd.concat(parts, ignore_index=True)
    table.attrs = {"assumed": assumed, "provenance": style.provenance(records, requests)}
    return table


def _bins(source: str, lengths: np.ndarray, shape: dict | None) -> pd.DataFrame:
    step = max(1, math.ceil((lengths.max() + 1 - lengths.min()) / _BINS))
    edges = np.arange(lengths.min(), lengths.max() + step + 1, step)
    counts, _ = np.histogram(lengths, edges)
    bins = pd.DataFrame({"source": source, "from_tokens": edges[:-1], "to_tokens": edges[1:], "requests": counts})
    bins["density"] = counts / counts.sum() / step
    expected = [_share(shape, low, low + step) / step if shape else pd.NA for low in edges[:-1]]
    return bins.assign(assumed_density=pd.array(expected, dtype="Float64"))


def _assumed(records: Records, requests: pd.DataFrame) -> dict | None:
    """Return the distribution of input lengths that all runs name in their workload, else None."""
    workloads = selection.described(records, requests.drop_duplicates("run_id"), "workload")
    shapes = [w["input"] if isinstance(w, dict) else None for w in workloads]
    return shapes[0] if all(shape == shapes[0] for shape in shapes) else None


def _share(shape: dict, low: int, high: int) -> float:
    """Return the share of lengths in [low, high) of a log-normal that is redrawn outside [minimum, maximum]."""

    def below(tokens: float) -> float:
        inside = min(max(tokens, shape["minimum"]), shape["maximum"] + 1)
        return NormalDist().cdf(math.log(inside / shape["median"]) / max(shape["sigma"], 1e-9))

    whole = below(math.inf) - below(0)
    return (below(high) - below(low)) / whole if whole else 0.0


@style.context()
def plot(table: pd.DataFrame) -> Figure:
    """Draw the histogram and the assumed density, one panel per source."""
    parts = list(table.groupby("source"))
    shape = (len(parts), 1) if style.narrow() else (1, len(parts))
    fig = style.figure(style.COLUMN if len(parts) == 1 else style.DOUBLE, 2.5 * shape[0])
    for ax, (source, rows) in zip(fig.subplots(*shape, squeeze=False).ravel(), parts):
        width = rows["to_tokens"] - rows["from_tokens"]
        label = f"{rows['requests'].sum():,} requests"
        look = dict(color="#88CCEE", edgecolor="white", linewidth=0.4)
        ax.bar(rows["from_tokens"], rows["density"], width, align="edge", label=label, **look)
        if assumed := table.attrs["assumed"][source]:
            middle = rows["from_tokens"] + width / 2
            ax.plot(middle, rows["assumed_density"].astype(float), color="#332288", label=_formula(assumed))
        ax.set(xlabel="Input length (tokens)", ylabel="Density (1/token)")
        ax.set_ylim(0, 1.35 * ax.get_ylim()[1])  # room for the legend
        ax.margins(x=0.01)
        ax.set_title(source if len(parts) > 1 else "")
        ax.legend(loc="upper right")  # a log-normal leaves that corner empty
    style.note(fig, table.attrs["provenance"])
    return fig


def _formula(shape: dict) -> str:
    return f"assumed: log-normal, median {shape['median']:.3g}, sigma {shape['sigma']:.3g}"
