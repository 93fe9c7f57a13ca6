"""Fig. 2: the distribution of the requests' input lengths, beside the assumed log-normal they were drawn from."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from erlab.errors import ErlabError
from erlab.figures import style
from erlab.results import selection
from erlab.results.records import Records

CAPTION = "Input lengths of the requests (bars) and the log-normal assumed for MLPerf's Llama 2 70B set (line)."
_BINS = 32


def data(records: Records) -> pd.DataFrame:
    """A row a source and bin [from_tokens, to_tokens): requests, density a token, assumed density (NA if unknown)."""
    parts = [_bins(records, source, rows) for source, rows in _known(records).groupby("source")]
    return pd.concat(parts, ignore_index=True)


def _known(records: Records) -> pd.DataFrame:
    requests = selection.systems(records).dropna(subset="input_tokens")
    if requests.empty:
        raise ErlabError("No request's input_tokens is known.")
    return requests


def _bins(records: Records, source: str, requests: pd.DataFrame) -> pd.DataFrame:
    lengths = requests["input_tokens"].to_numpy(dtype=int)
    step = max(1, math.ceil((lengths.max() + 1 - lengths.min()) / _BINS))
    edges = np.arange(lengths.min(), lengths.max() + step + 1, step)
    counts, _ = np.histogram(lengths, edges)
    frame = pd.DataFrame({"source": source, "from_tokens": edges[:-1], "to_tokens": edges[1:], "requests": counts})
    frame["density"] = counts / counts.sum() / step
    shape = _assumed(records, requests)
    expected = [_share(shape, low, low + step) / step if shape else pd.NA for low in edges[:-1]]
    return frame.assign(assumed_density=pd.array(expected, dtype="Float64"))


@style.context()
def plot(records: Records) -> Figure:
    """The histogram with the assumed density over it, a panel a source."""
    frame, requests = data(records), _known(records)
    parts = list(frame.groupby("source"))
    shape = (len(parts), 1) if style.narrow() else (1, len(parts))
    fig = style.figure(style.COLUMN if len(parts) == 1 else style.DOUBLE, 2.5 * shape[0])
    for ax, (source, rows) in zip(fig.subplots(*shape, squeeze=False).ravel(), parts):
        mine = requests[requests["source"] == source]
        width = rows["to_tokens"] - rows["from_tokens"]
        label = f"{rows['requests'].sum():,} requests"
        look = dict(color="#88CCEE", edgecolor="white", linewidth=0.4)
        ax.bar(rows["from_tokens"], rows["density"], width, align="edge", label=label, **look)
        known = rows.dropna()
        if len(known):
            middle = known["from_tokens"] + width[known.index] / 2
            ax.plot(middle, known["assumed_density"].astype(float), color="#332288", label=_formula(records, mine))
        ax.set(xlabel="Input length (tokens)", ylabel="Density (1/token)")
        ax.set_ylim(0, 1.35 * ax.get_ylim()[1])  # room for the legend
        ax.margins(x=0.01)
        ax.set_title(source if len(parts) > 1 else "")
        ax.legend(loc="upper right")  # a log-normal leaves that corner empty
    style.footer(fig, records, requests)
    return fig


def _assumed(records: Records, requests: pd.DataFrame) -> dict | None:
    """The input lengths that the runs' workloads name; None unless all name the same."""
    described = selection.described(records, requests.drop_duplicates("run_id"), "workload")
    named = [w["input"] if isinstance(w, dict) else None for w in described]
    return named[0] if all(w == named[0] for w in named) else None


def _share(shape: dict, low: int, high: int) -> float:
    """The share of lengths in [low, high) of a log-normal that is redrawn outside [minimum, maximum]."""

    def below(tokens: float) -> float:
        inside = min(max(tokens, shape["minimum"]), shape["maximum"] + 1)
        return NormalDist().cdf(math.log(inside / shape["median"]) / max(shape["sigma"], 1e-9))

    whole = below(math.inf) - below(0)
    return (below(high) - below(low)) / whole if whole else 0.0


def _formula(records: Records, requests: pd.DataFrame) -> str:
    shape = _assumed(records, requests)
    return f"assumed: log-normal, median {shape['median']:.3g}, sigma {shape['sigma']:.3g}"
