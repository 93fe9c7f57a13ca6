"""Fig. 1: architecture, with the trained clusters and the experts that served them."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

from erlab.errors import ErlabError
from erlab.figures import style
from erlab.results import selection
from erlab.results.records import Records

CAPTION = (
    "Expert Router: a prompt arrives (1); the gateway computes its features (2), assigns it to a cluster by k-means "
    "(3) and forwards it to the expert of that cluster (4); the response streams back through the gateway (5) to the "
    "user (6). Points: a sample of the training prompts, projected to two dimensions. Line width: share of requests."
)
_SHOWN = 12  # number of clusters drawn, the largest ones
_POINTS = ["x", "y", "cluster", "domain"]
_ROW, _BOX = 0.27, dict(boxstyle="round,pad=0,rounding_size=0.06", linewidth=0.9)


def data(records: Records) -> pd.DataFrame:
    """Describe the clusters of the first router system whose router is described.

    Returns:
        One row per cluster and expert: size and share of the training prompts, top domain, purity, terms, expert and
        number of requests; a cluster without requests has no expert. `attrs`: points (x, y, cluster and domain of a
        sample of prompts), users (smallest and largest load), servers, title, provenance.

    Raises:
        ErlabError: No run describes its router.
    """
    run = _router_run(records)
    requests = selection.systems(records)
    requests = requests[(requests["system"] == run["system"]) & (requests["source"] == run["source"])]
    pairs = requests.dropna(subset=["cluster", "expert"]).groupby(["cluster", "expert"]).size().rename("requests")
    clusters = pd.DataFrame(run["router_summary"]["clusters"])
    clusters = clusters.assign(terms=[", ".join(terms) for terms in clusters["terms"]], system=run["system"])
    columns = ["system", "cluster", "size", "share", "top_domain", "purity", "terms"]
    table = clusters[columns].merge(pairs.reset_index(), on="cluster", how="left")
    table = table.assign(requests=table["requests"].fillna(0).astype(int))
    table.attrs = {
        "points": pd.DataFrame(run["router_summary"]["points"], columns=_POINTS).to_dict("list"),
        "users": [int(requests["users"].min()), int(requests["users"].max())],
        "servers": "Servers" if isinstance(run.get("engine"), str) else "Triton",
        "title": run["title"] if isinstance(run.get("title"), str) else None,
        "provenance": style.provenance(records, requests),
    }
    return table


def _router_run(records: Records) -> dict:
    """Return the description of the first run that contains a summary of its router."""
    runs = selection.runs(records).reset_index()
    with_requests = set(records.requests["run_id"].unique()) - set(selection.died(records))
    runs = runs[runs["run_id"].isin(with_requests)]
    if "router_summary" in runs:
        runs = runs[runs["router_summary"].map(lambda s: isinstance(s, dict))]
        if len(runs):
            return runs.sort_values(["system", "source", "run_id"]).iloc[0].to_dict()
    raise ErlabError("No run describes its router (router_summary).")


def files(table: pd.DataFrame) -> dict[str, str]:
    """Write the projected prompts as CSV."""
    return {"fig1_points.csv": pd.DataFrame(table.attrs["points"]).to_csv(index=False)}


@style.context()
def plot(table: pd.DataFrame) -> Figure:
    """Draw users, gateway with clusters, and servers with experts."""
    points, (least, most) = pd.DataFrame(table.attrs["points"]), table.attrs["users"]
    clusters = table.drop_duplicates("cluster").nlargest(_SHOWN, "share").sort_values("cluster")
    experts = sorted(table["expert"].dropna().unique())
    rows = max(len(clusters), 5)
    height = 1.15 + rows * _ROW
    fig = style.figure(style.DOUBLE, height + 0.15, diagram=True)
    ax = fig.subplots()
    ax.set(xlim=(0, style.DOUBLE), ylim=(-0.05, height), aspect="equal")
    ax.axis("off")
    look = {c: style.color_and_marker(i) for i, c in enumerate(sorted(table["cluster"].unique()))}

    top, low = height - 0.32, 0.28
    middle = (top + low) / 2
    _box(ax, 0.05, low, 0.95, top, "User simulator")
    loads = f"{least}–{most}" if least < most else f"{least}"
    loop = f"{loads} users in a\nclosed loop:\nnext prompt\nafter each\nanswer"
    ax.text(0.5, middle, loop, ha="center", va="center", fontsize=7.5)
    _box(ax, 1.4, low, 4.95, top, "Routing gateway")
    _box(ax, 5.55, low, 7.1, top, table.attrs["servers"])

    _scatter(ax.inset_axes([1.52, middle - 0.68, 1.36, 1.36], transform=ax.transData), points, look)
    ax.text(2.2, middle + 0.77, "(2) TF-IDF features", ha="center", va="bottom", fontsize=7)
    ax.text(
        2.2, middle - 0.75, f"{len(points)} prompts, projected", ha="center", va="top", fontsize=7, color=style.GREY
    )
    ax.text(3.02, top - 0.16, f"(3) k-means: {table['cluster'].nunique()} clusters", va="center", fontsize=7)
    pitch = (top - low - 0.3) / rows
    y = {c: top - 0.3 - (i + 0.5) * pitch for i, c in enumerate(clusters["cluster"])}
    for cluster in clusters.itertuples():
        color, marker = look[cluster.cluster]
        ax.plot(3.1, y[cluster.cluster], marker=marker, color=color, markersize=5)
        ax.text(3.2, y[cluster.cluster], _label(cluster), va="center", fontsize=7)

    expert_y = {e: top - 0.3 - (i + 0.5) * (top - low - 0.3) / max(1, len(experts)) for i, e in enumerate(experts)}
    for expert in experts:
        half = min(0.2, 0.4 * (top - low) / len(experts))
        corner, colors = (5.8, expert_y[expert] - half), dict(facecolor="#eef3f7", edgecolor="#8899aa")
        ax.add_patch(FancyBboxPatch(corner, 1.2, 2 * half, **colors, **_BOX))
        ax.text(6.4, expert_y[expert], _shortened(expert, 20), ha="center", va="center", fontsize=7)
    share = table["requests"] / max(1, table["requests"].sum())
    for pair, weight in zip(table.itertuples(), share):
        if pair.cluster in y and pair.expert in expert_y:
            ax.plot(
                [4.98, 5.79],
                [y[pair.cluster], expert_y[pair.expert]],
                color=look[pair.cluster][0],
                linewidth=0.5 + 6 * weight,
                alpha=0.8,
            )
    ax.text(5.25, top + 0.04, "(4)", ha="center", va="bottom", fontsize=8)
    _arrow(ax, (0.97, middle), (1.38, middle), "(1)")
    _arrow(ax, (5.53, low - 0.12), (4.97, low - 0.12), "(5)")
    _arrow(ax, (1.38, low - 0.12), (0.97, low - 0.12), "(6)")
    if title := table.attrs["title"]:
        ax.text(6.33, low - 0.06, title.replace(", ", "\n", 1), ha="center", va="top", fontsize=7, color=style.GREY)
    _scale(fig, fig.get_figwidth() / style.DOUBLE)
    style.note(fig, table.attrs["provenance"])
    return fig


def _scale(fig: Figure, factor: float) -> None:
    """Scale texts, lines and markers, whose sizes are in points, with the drawing."""
    for text in fig.findobj(Text):
        text.set_fontsize(text.get_fontsize() * factor)
    for line in fig.findobj(Line2D):
        line.set(linewidth=line.get_linewidth() * factor, markersize=line.get_markersize() * factor)


def _scatter(ax: Axes, points: pd.DataFrame, look: dict) -> None:
    for cluster, rows in points.groupby("cluster"):
        color, marker = look[cluster]
        ax.plot(rows["x"], rows["y"], marker, color=color, markersize=2.4, alpha=0.75, markeredgewidth=0)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="#bbbbbb")


def _box(ax: Axes, left: float, low: float, right: float, top: float, title: str) -> None:
    ax.add_patch(FancyBboxPatch((left, low), right - left, top - low, facecolor="none", edgecolor="#444444", **_BOX))
    ax.text((left + right) / 2, top + 0.06, title, ha="center", va="bottom", weight="bold", fontsize=8)


def _arrow(ax: Axes, start: tuple, end: tuple, label: str) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color="#444444", shrinkA=0, shrinkB=0))
    ax.text((start[0] + end[0]) / 2, start[1] + 0.05, label, ha="center", va="bottom", fontsize=8)


def _label(cluster) -> str:
    """Format a cluster's share and as many of its terms as fit."""
    share, *terms = f"{100 * cluster.share:.0f} %", *cluster.terms.split(", ")
    while len(terms) > 1 and len(", ".join(terms)) > 22:
        terms.pop()
    return f"{share}  {_shortened(', '.join(terms), 22)}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip(", ") + "…"
