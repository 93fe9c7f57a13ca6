"""Figures of a trained router's clusters (`evaluation.summary`) and of compared recipes (`evaluation.compare`)."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"]


def projection(summary: dict) -> Figure:
    """Draw a sample of prompts, projected to two dimensions, by domain; numbers mark the median of each cluster."""
    points = pd.DataFrame(summary["points"])
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    domains = sorted(points["domain"].unique())
    palette = sns.color_palette("colorblind", 10)
    sns.scatterplot(
        points,
        x="x",
        y="y",
        hue="domain",
        hue_order=domains,
        style="domain",
        style_order=domains,
        palette=[palette[i % 10] for i in range(len(domains))],
        markers=[_MARKERS[(i + i // 10) % 10] for i in range(len(domains))],
        s=22,
        alpha=0.75,
        linewidth=0,
        ax=axes,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, title="domain", fontsize="small")
    for cluster, members in points.groupby("cluster"):
        box = dict(boxstyle="circle,pad=0.15", facecolor="white", edgecolor="0.3", alpha=0.85)
        center = members[["x", "y"]].median()
        axes.annotate(str(cluster), center, ha="center", va="center", fontsize="small", fontweight="bold", bbox=box)
    axes.set(xlabel="", ylabel="", xticks=[], yticks=[])
    sns.despine(figure, left=True, bottom=True)
    return figure


def composition(summary: dict) -> Figure:
    """Draw the size of each cluster and the share of each domain's training prompts in it."""
    clusters = summary["clusters"]
    counts = pd.DataFrame([c["domains"] for c in clusters], index=[c["cluster"] for c in clusters]).fillna(0).T
    counts = counts.reindex(columns=[c["cluster"] for c in sorted(clusters, key=lambda c: -c["size"])])
    counts = counts.loc[sorted(counts.index, key=lambda d: int(np.argmax(counts.loc[d])))]
    figure, (bars, heat) = plt.subplots(
        2,
        1,
        figsize=(1.8 + 0.55 * counts.shape[1], 1.8 + 0.3 * len(counts)),
        sharex=True,
        height_ratios=(1.2, 0.3 * len(counts)),
        layout="constrained",
    )
    share = counts.div(counts.sum(axis=1), axis=0)
    _heatmap(heat, share)
    heat.set(xlabel="cluster, largest first", ylabel="")
    heat.tick_params(axis="x", rotation=0)
    sizes = counts.sum()
    bars.bar(np.arange(len(sizes)) + 0.5, sizes, width=0.8, color=sns.color_palette("colorblind")[0])
    bars.axhline(sizes.mean(), color="0.3", linewidth=0.8, linestyle="--")
    bars.set(ylabel="prompts")
    bars.set_title("training prompts per cluster (dashed: mean), and % of each domain per cluster", fontsize="small")
    sns.despine(ax=bars)
    return figure


def _heatmap(axes: Axes, shares: pd.DataFrame) -> None:
    """Draw shares as colours, labelled in per cent."""
    labels = (100 * shares).round().astype(int).map(lambda v: str(v) if v else "")
    sns.heatmap(
        shares, annot=labels, fmt="", cmap="cividis", vmin=0, vmax=1, linewidths=0.5, cbar=False, ax=axes,
        annot_kws={"fontsize": "x-small"},
    )
    axes.tick_params(axis="y", rotation=0)


def frontier(table: pd.DataFrame) -> Figure:
    """Draw routing accuracy on unseen prompts over the latency of a decision, with the Pareto frontier."""
    table = table.sort_values("p50_ms")
    families = [str(recipe).partition(",")[0] for recipe in table.index]
    figure, axes = plt.subplots(figsize=(7.5, max(3.4, 1.2 + 0.24 * len(table))), layout="constrained")
    looks = dict(hue=families, style=families, palette="colorblind", s=55, legend=False)  # points are labelled
    sns.scatterplot(x=table["p50_ms"], y=table["unseen"], ax=axes, **looks)
    best = table[table["unseen"] >= table["unseen"].cummax()]
    axes.step(best["p50_ms"], best["unseen"], where="post", color="0.6", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="median time per decision (ms)", ylabel="routing accuracy, unseen prompts")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08)
    _name_points(axes, table["p50_ms"], table["unseen"])
    sns.despine(figure)
    return figure


def _name_points(axes: Axes, x: pd.Series, y: pd.Series) -> None:
    """Label the points in a column at the right, close to their heights without overlap, with leader lines."""
    order = y.sort_values(kind="stable").index
    low, high = axes.get_ylim()
    gap = 1 / max(len(order), 10)
    heights = [(y[name] - low) / (high - low) for name in order]
    for i in range(1, len(order)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights[-1] = min(heights[-1], 1)
    for i in reversed(range(len(order) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    for name, height in zip(order, heights, strict=True):
        axes.annotate(
            f"{name}  {y[name]:.3f}",
            (x[name], y[name]),
            xytext=(1.06, height),
            textcoords=axes.transAxes,
            va="center",
            fontsize="small",
            arrowprops=dict(arrowstyle="-", color="0.75", linewidth=0.6, relpos=(0, 0.5), shrinkB=4),
            annotation_clip=False,
        )


def loads(table: pd.DataFrame) -> Figure:
    """Draw the ratio of the largest cluster to the mean on unseen prompts; 1 (dashed) is an even load."""
    table = table.sort_values("load")
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.28 * len(table)), layout="constrained")
    axes.barh(table.index, table["load"], color=sns.color_palette("colorblind")[0])
    axes.bar_label(axes.containers[0], fmt="%.2f", padding=2, fontsize="small")
    axes.axvline(1, color="0.3", linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.set(xlabel="largest cluster / mean, unseen prompts")
    sns.despine(figure)
    return figure


def confusions(matrices: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the share (%) of each domain's unseen prompts by the domain of their cluster, one panel per recipe."""
    rows = max(len(shares) for shares in matrices.values())
    size = 2 + 3.3 * len(matrices), 1.8 + 0.26 * rows
    figure, panels = plt.subplots(1, len(matrices), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (name, shares) in zip(panels[0], matrices.items(), strict=True):
        shares = shares.reindex(columns=shares.index.union(shares.columns), fill_value=0)
        _heatmap(axes, shares)
        axes.set(title=name, xlabel="domain of the cluster", ylabel="")
        axes.tick_params(axis="x", rotation=90)
    panels[0][0].set_ylabel("domain of the prompt")
    return figure
