"""A trained router's clusters as pictures, from `evaluation.summary` alone."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"]


def projection(summary: dict) -> Figure:
    """A sample of the prompts in a plane that keeps neighbours together, coloured by domain; a number marks the
    middle of each cluster."""
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
        where = members[["x", "y"]].median()
        axes.annotate(str(cluster), where, ha="center", va="center", fontsize="small", fontweight="bold", bbox=box)
    axes.set(xlabel="", ylabel="", xticks=[], yticks=[])
    sns.despine(figure, left=True, bottom=True)
    return figure


def composition(summary: dict) -> Figure:
    """Which domains each cluster holds (share of the domain's training prompts), and how many prompts that makes."""
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
    labels = (100 * share).round().astype(int).map(lambda v: str(v) if v else "")
    sns.heatmap(
        share, annot=labels, fmt="", cmap="cividis", vmin=0, vmax=1, linewidths=0.5, cbar=False, ax=heat,
        annot_kws={"fontsize": "x-small"},
    )
    heat.set(xlabel="cluster, largest first", ylabel="")
    heat.tick_params(axis="y", rotation=0)
    heat.tick_params(axis="x", rotation=0)
    sizes = counts.sum()
    bars.bar(np.arange(len(sizes)) + 0.5, sizes, width=0.8, color=sns.color_palette("colorblind")[0])
    bars.axhline(sizes.mean(), color="0.3", linewidth=0.8, linestyle="--")
    bars.set(ylabel="prompts")
    bars.set_title("training prompts a cluster (dashed: mean) and % of each domain in it", fontsize="small")
    sns.despine(ax=bars)
    return figure


def frontier(table: pd.DataFrame) -> Figure:
    """Accuracy on unseen prompts over the latency of one decision, a point a recipe of `evaluation.compare`; the line
    joins those that none beats in both."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    table = table.sort_values("p50_ms")
    families = [str(recipe).partition(",")[0] for recipe in table.index]
    sns.scatterplot(
        x=table["p50_ms"], y=table["unseen"], hue=families, style=families, palette="colorblind", s=55, ax=axes
    )
    best = table[table["unseen"] >= table["unseen"].cummax()]
    axes.step(best["p50_ms"], best["unseen"], where="post", color="0.6", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="one decision, p50 (ms)", ylabel="macro routing accuracy, unseen prompts")
    axes.legend(title="features", frameon=False, loc="lower right", fontsize="small")
    sns.despine(figure)
    return figure


def loads(table: pd.DataFrame) -> Figure:
    """Largest cluster to mean on unseen prompts, a bar a recipe of `evaluation.compare`; 1 (dashed) is an even load."""
    table = table.sort_values("load")
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.28 * len(table)), layout="constrained")
    axes.barh(table.index, table["load"], color=sns.color_palette("colorblind")[0])
    axes.bar_label(axes.containers[0], fmt="%.2f", padding=2, fontsize="small")
    axes.axvline(1, color="0.3", linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.set(xlabel="largest cluster / mean, unseen prompts")
    sns.despine(figure)
    return figure
